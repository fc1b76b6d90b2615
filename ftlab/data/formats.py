"""Unpacks files and opens those that hold a table. Formats are told by their first bytes."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import sys
import zipfile
import zlib
from pathlib import Path

from ftlab._core.errors import DataError
from ftlab._core.text import safe

CSV = (".csv", ".tsv")
PACKED = (".gz", ".bz2", ".xz", ".zst", ".zip")
ENDINGS = (*CSV, ".json", ".jsonl", ".parquet", ".arrow", ".xlsx", *PACKED, ".txt")
GIVE = "Give a .jsonl, .json, .csv or .parquet file (also packed as .gz, .xz, .zst or .zip)"
MOST_UNPACKED = 2**32  # bytes of a packed file, once unpacked
LAYERS = 3  # of packing, such as a .gz inside a .zip
PACKERS = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ\x00": "xz",
    b"\x5d\x00\x00": "xz",  # its older form, .lzma
    b"\x28\xb5\x2f\xfd": "zstd",
    b"PK\x03\x04": "zip",
}
OF_PACKERS = (zlib.error, lzma.LZMAError, zipfile.BadZipFile)
DAMAGES = (EOFError, OSError, RuntimeError, ValueError, *OF_PACKERS)
UNREAD = {  # first bytes of what is no data that can be read here: what it is
    b"\xd0\xcf\x11\xe0": "an old Excel or Word file",
    b"SQLite format 3": "an SQLite database",
    b"7z\xbc\xaf": "a 7z archive",
    b"Rar!": "a rar archive",
    b"%PDF": "a PDF",
    b"\x80\x04\x95": "a Python pickle, which can run code",
    b"\x80\x05\x95": "a Python pickle, which can run code",
}


def unpacked(path: Path, raw: bytes) -> tuple[bytes, str]:
    """Return what a file holds, unpacked, and how it was packed, such as ", gzip".

    Raises:
        DataError: `damaged_gzip`, `damaged_archive`, `too_large`, `several_files`.
    """
    packed = ""
    for _ in range(LAYERS):
        found = [kind for magic, kind in PACKERS.items() if raw.startswith(magic)]
        if not found or _is_workbook(raw):
            break
        raw = _unpack(path, raw, found[0])
        packed += f", {found[0]}"
    return raw, packed


def _unpack(path, raw, kind):
    try:
        with _opened(path, io.BytesIO(raw), kind) as file:
            found = file.read(MOST_UNPACKED + 1)
    except DataError:
        raise
    except DAMAGES as error:
        code = "damaged_gzip" if kind == "gzip" else "damaged_archive"
        why = f"truncated or damaged {kind} ({error}). Download the file again."
        raise DataError(code, f"{path}:1: {why}") from None
    if len(found) > MOST_UNPACKED:
        raise _too_large(path)
    return found


def _too_large(path):
    why = f"unpacks to more than {MOST_UNPACKED:,} bytes. Unpack and split it yourself."
    return DataError("too_large", f"{path}: {why}")


def _opened(path, file, kind):
    if kind == "zip":
        return _only_member(path, file)
    if kind == "zstd":
        import pyarrow

        return pyarrow.CompressedInputStream(file, kind)
    return {"gzip": gzip, "bzip2": bz2, "xz": lzma}[kind].open(file)


def _only_member(path, file):
    """Open the one data file of a zip archive."""
    archive = zipfile.ZipFile(file)
    names = [name for name in archive.namelist() if Path(name).suffix.lower() in ENDINGS]
    names = [name for name in names if not name.startswith("__MACOSX/")]
    if len(names) != 1:
        why = f"a zip archive with {len(names)} data files. Unpack it and give one of them."
        raise DataError("several_files", f"{path}: {why}", files=names)
    return archive.open(names[0])


def read_table(path: Path, raw: bytes) -> tuple[str, list[dict]] | None:
    """Return format and rows of a file that is no text; None for text.

    Raises:
        DataError: `broken_parquet`, `broken_arrow`, `broken_orc`, `unknown_format`, `too_large`.
    """
    if raw[:4] == b"PAR1":
        return "Parquet", _columns(path, raw, "Parquet")
    if raw[:6] == b"ARROW1" or raw[:4] == b"\xff\xff\xff\xff":
        return "Arrow", _columns(path, raw, "Arrow")
    if raw[:3] == raw[-4:-1] == b"ORC":
        return "ORC", _columns(path, raw, "ORC")
    if _is_workbook(raw):
        return "Excel", _workbook(path, raw)
    kinds = [what for magic, what in UNREAD.items() if raw.startswith(magic)]
    if raw[257:262] == b"ustar":
        kinds.append("a tar archive")
    if kinds:
        raise DataError("unknown_format", f"{path}: {kinds[0]}. {GIVE}.")
    return None


def _columns(path, raw, form):
    import pyarrow.orc
    import pyarrow.parquet

    file = io.BytesIO(raw)
    try:
        if form == "Parquet":
            table = pyarrow.parquet.read_table(file)
        elif form == "ORC":
            table = pyarrow.orc.read_table(file)
        elif raw[:6] == b"ARROW1":
            table = pyarrow.ipc.open_file(file).read_all()
        else:
            table = pyarrow.ipc.open_stream(file).read_all()
        return table.to_pylist()
    except Exception as error:  # pyarrow's own classes
        why = f"broken {form} ({error}). Download the file again."
        raise DataError(f"broken_{form.lower()}", f"{path}: {why}") from None


def _is_workbook(raw):
    return raw.startswith(b"PK") and b"[Content_Types].xml" in raw


def _workbook(path, raw):
    """Return the rows of a workbook's first sheet that holds any; name the others on stderr."""
    import pandas as pd

    try:
        sizes = [member.file_size for member in zipfile.ZipFile(io.BytesIO(raw)).infolist()]
        if sum(sizes) > MOST_UNPACKED:
            raise _too_large(path)
        sheets = pd.read_excel(io.BytesIO(raw), sheet_name=None, engine="openpyxl")
    except DataError:
        raise
    except Exception as error:  # no openpyxl, or what it finds: each has its own class
        why = f"an Excel or Office file that cannot be read ({error}). Save the sheet as CSV."
        raise DataError("unknown_format", f"{path}: {why}") from None
    full = [name for name, sheet in sheets.items() if len(sheet)] or list(sheets)
    if full[1:]:
        why = f"{path.name}: only the first of the sheets {', '.join(full)} is read"
        print(safe(why, 300), file=sys.stderr)
    table = sheets[full[0]].rename(columns=str)
    return table.astype(object).where(table.notna(), None).to_dict("records")
