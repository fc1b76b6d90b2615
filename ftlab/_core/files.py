"""Bytes on disk: files that are whole or not there, hashes of files, one sentence for a full disk."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import shutil
import time
from functools import lru_cache
from pathlib import Path

YOUNG_NS = 2 * 10**9  # the coarsest clock of a file system: FAT
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# Exceptions of Rust (safetensors, tokenizers) end in the number; PyTorch's writer loses it on the way.
SAID = re.compile(rf"\(os error ({'|'.join(map(str, FULL))})\)|PytorchStreamWriter|unexpected pos \d|basic_ios::clear")


class StorageFull(OSError):
    """Something could not be written for want of room. What was written before is whole; the same call goes on from it."""


@contextlib.contextmanager
def storage(path: Path, *, making: bool = False):
    """Whatever says inside that there is no room (at `path`) becomes StorageFull; `making`: other refusals PermissionError."""
    try:
        yield
    except Exception as e:
        disk = isinstance(e, OSError) and not isinstance(e, (StorageFull, TimeoutError))
        if e.errno in FULL if disk else SAID.search(str(e)) and not isinstance(e, StorageFull):
            raise StorageFull(
                f"{path} could not be written: {e} ({_room(Path(path))}); make room, or lift the limit, and call again: "
                "what was written before is kept (`ftlab runs clean` shows what could go)"
            ) from e
        if disk and making:
            raise PermissionError(f"{path} cannot be written ({e}); set FTLAB_RUNS to a folder that can") from e
        raise


def _room(path: Path) -> str:
    there = next(p for p in (path, *path.absolute().parents) if p.is_dir())
    files = f", room for {os.statvfs(there).f_favail:,} files" if hasattr(os, "statvfs") else ""
    return f"{shutil.disk_usage(there).free / 1e6:,.1f} MB free{files}"


def write_atomic(path: Path, text: str, *, new: bool = False) -> None:
    """A temporary sibling, fsync, replace: whole or not there. `new`: a file that is there stays. Raises StorageFull."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with storage(path):
        try:
            with open(temporary, "w", encoding="utf-8", errors="surrogatepass") as f:
                f.write(text)
                f.flush()
                os.fsync(f.fileno())
            if not new:
                os.replace(temporary, path)
            elif not path.exists():
                try:
                    os.link(temporary, path)
                except FileExistsError:
                    pass
                except OSError:  # a file system without links
                    os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


def file_hash(path: Path, anew: bool = False) -> str:
    """-> SHA-256 of a file's bytes, hex; remembered (but for `anew`) while its inode, size and times stay the same,
    once it is so old that the clock of its file system tells it from the next version."""
    now = stamp(Path(path))
    young = now and time.time_ns() - now[-1] < YOUNG_NS
    return (_file_hash.__wrapped__ if anew or young else _file_hash)(str(path), *now)


def stamp(path: Path) -> tuple:
    """-> what changes when a file does; () where there is none."""
    with contextlib.suppress(FileNotFoundError):
        stat = path.stat()
        return stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns
    return ()


@lru_cache(4096)
def _file_hash(path: str, *_) -> str:
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()
