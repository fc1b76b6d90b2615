"""Files: atomic writes, hashes, shipped resources, and one clear error when the disk is full."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import tempfile
import time
import uuid
from collections.abc import Iterator
from functools import lru_cache, partial
from itertools import islice
from pathlib import Path
from typing import Any

from ftlab._core.errors import FtlabError, NotFoundError, StorageFull, UsageError
from ftlab._core.text import safe

PACKAGE = Path(__file__).resolve().parents[1]  # the folder `ftlab`
CLOCK_NS = 2 * 10**9  # resolution of the coarsest file system clock (FAT)
AT_A_TIME = 1000  # items of a list that are written out for their hash
HASHES = "hashes.json"  # in `data`
LINKLESS = (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK)  # no (more) hard links here
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# Libraries in Rust report the number in their text; PyTorch's writer loses it on the way.
FULL_TEXT = re.compile(
    rf"\(os error ({'|'.join(map(str, FULL))})\)"
    r"|PytorchStreamWriter|unexpected pos \d|basic_ios::clear"
)


@contextlib.contextmanager
def storage(path: Path, *, making: bool = False) -> Iterator[None]:
    """Turn any failure that a full disk causes inside the block into StorageFull.

    Args:
        path: What is being written; named in the error.
        making: The block makes a folder of runs. Then other refusals of the file system become
            UsageError `folder_not_writable`.

    Raises:
        StorageFull: `storage_full`. What was written before is whole, so the same call resumes.
    """
    try:
        yield
    except StorageFull:
        raise
    except Exception as error:
        if _is_disk_full(error):
            raise StorageFull(
                "storage_full",
                f"{path} could not be written: {error} ({_free_space(Path(path))}). Free some "
                "space and call again; `ftlab runs clean` lists what could go.",
            ) from error
        if making and _is_disk_error(error):
            raise UsageError(
                "folder_not_writable",
                f"{path} cannot be written ({error}). Set FTLAB_RUNS to a writable folder.",
            ) from error
        raise


@contextlib.contextmanager
def scratch(target: Path) -> Iterator[Path]:
    """Yield a folder on the disk of a file or folder that is being made, and remove it."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with storage(target):
        with tempfile.TemporaryDirectory(prefix=".ftlab-", dir=target.parent) as folder:
            yield Path(folder)


def _is_disk_error(error: Exception) -> bool:
    return isinstance(error, OSError) and not isinstance(error, (TimeoutError, NotFoundError))


def _is_disk_full(error: Exception) -> bool:
    if _is_disk_error(error):
        return error.errno in FULL
    return FULL_TEXT.search(str(error)) is not None


def _free_space(path: Path) -> str:
    existing = next(p for p in (path, *path.absolute().parents) if p.is_dir())
    text = f"{shutil.disk_usage(existing).free / 1e6:,.1f} MB free"
    if hasattr(os, "statvfs"):
        text += f", room for {os.statvfs(existing).f_favail:,} files"
    return text


def write_atomic(path: Path, content: str | bytes, *, new: bool = False) -> None:
    """Write a file so that it is either whole or not there.

    Args:
        path: The file.
        content: All of it. Unpaired surrogates of a text are written as they are.
        new: Keep a file that is already there.

    Raises:
        StorageFull: `storage_full`; the old content stays.
    """
    temporary = _beside(path)
    if isinstance(content, str):
        content = content.encode("utf-8", "surrogatepass")
    with storage(path):
        try:
            with open(temporary, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            if new:
                _link_if_absent(temporary, path)
            else:
                os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


def write_page(path: Path, content: str, *, new: bool = False) -> None:
    """Write a file that the user asked for, and its folder where there is none yet.

    Args:
        path: The file.
        content: All of it.
        new: Keep a file that is already there.

    Raises:
        UsageError: `output_not_writable`.
        StorageFull: `storage_full`.
    """
    with _asked_for(path):
        write_atomic(path, content, new=new)


def check_pages(*paths: str | Path | None) -> None:
    """Check several pages as `check_page` does, and that they are different files.

    Raises:
        UsageError: `output_given_twice`, and those of `check_page`.
    """
    places = [page.absolute() for page in map(check_page, paths) if page is not None]
    if len(set(places)) < len(places):
        raise UsageError("output_given_twice", f"{places[0]} is named twice. Name two files.")


def check_page(path: str | Path | None) -> Path | None:
    """Return the path of a page, which can be written, before work that may take hours.

    Args:
        path: Where it is to be written; None for nowhere.

    Raises:
        UsageError: `output_not_writable`.
        StorageFull: `storage_full`.
    """
    if path is None:
        return None
    if not isinstance(path, (str, Path)):
        why = f"A file is named by a text, not by a {type(path).__name__}. Name one."
        raise UsageError("output_not_writable", why)
    path = Path(path)
    with _asked_for(path):
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        temporary = _beside(path)
        with storage(path):
            temporary.touch()
        temporary.unlink()
    return path


@contextlib.contextmanager
def _asked_for(path: Path) -> Iterator[None]:
    """Make the folder of a file that the user named; say in a sentence what is wrong with it."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield
    except (OSError, ValueError) as error:  # of a name with a null character, ValueError
        if isinstance(error, FtlabError):
            raise
        reason = getattr(error, "strerror", None) or error
        name = safe(path, 300)
        raise UsageError(
            "output_not_writable", f"{name} cannot be written ({reason}). Name another."
        ) from None


def _beside(path: Path) -> Path:
    """Return the name of a temporary file; not by process id: those of containers may be equal."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.tmp")


def _link_if_absent(temporary: Path, path: Path) -> None:
    if path.exists():
        return
    try:
        os.link(temporary, path)
    except FileExistsError:
        pass
    except OSError as error:
        if error.errno not in LINKLESS:
            raise
        _create(path, temporary.read_bytes())


def _create(path: Path, content: bytes) -> None:
    """Write a file that is not there, where a reader may see half of it; leave none on an error."""
    try:
        file = open(path, "xb")  # noqa: SIM115
    except FileExistsError:
        return
    try:
        with file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def claim(path: Path, content: str) -> bool:
    """Write a file that is not there yet, and return whether this call did.

    Of several calls, on whatever machines, one is first. Their contents must differ: the file says
    whose it is even where a network's file system lost the answer.

    Raises:
        StorageFull: `storage_full`.
    """
    write_atomic(path, content, new=True)
    return path.read_bytes() == content.encode()


class FolderLock:
    """One writer per folder, on every machine that sees it.

    It holds the file `.lock` and, where the system can lock folders, the folder itself: a cleaner
    that removes the file lets nobody in.

    Args:
        folder: An existing folder.
    """

    def __init__(self, folder: Path):
        from filelock import FileLock

        self.folder = folder
        self.file = FileLock(folder / ".lock")
        self.descriptor = -1

    def acquire(self, timeout: float = -1) -> FolderLock:
        """Take the lock; wait `timeout` seconds, or for ever.

        Raises:
            filelock.Timeout: Another one has it.
        """
        from filelock import Timeout

        until = time.monotonic() + timeout
        self.file.acquire(timeout=timeout)
        try:
            while not self._take_folder():
                if 0 <= timeout and until <= time.monotonic():
                    raise Timeout(str(self.folder))
                time.sleep(0.05)
        except BaseException:
            self.release()
            raise
        return self

    def _take_folder(self) -> bool:
        try:
            import fcntl

            self.descriptor = os.open(self.folder, os.O_RDONLY)
            fcntl.flock(self.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._leave_folder()
            return False
        except (ImportError, OSError):  # Windows, or a network's file system: the file must do
            self._leave_folder()
        return True

    def _leave_folder(self) -> None:
        if self.descriptor >= 0:
            os.close(self.descriptor)
        self.descriptor = -1

    def is_taken(self) -> bool:
        """Return whether another one has it. Changes nothing in the folder."""
        from filelock import Timeout

        if not self._take_folder():
            return True
        self._leave_folder()
        if not (self.folder / ".lock").exists():
            return False
        try:
            self.file.acquire(timeout=0).lock.release()
        except Timeout:
            return True
        return False

    def release(self) -> None:
        """Give the lock back."""
        self._leave_folder()
        self.file.release()

    def __enter__(self) -> FolderLock:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


def json_lines(records: list[dict]) -> str:
    """Return records as JSON Lines."""
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)


def digest(value: Any) -> str:
    """Return 16 hex digits of the SHA-256 of a JSON-able value. Order of keys is ignored.

    An iterator counts as the list of its items, which is never written out as a whole.
    """
    content = hashlib.sha256()
    for text in _written(value):
        data = text.encode("utf-8", "surrogatepass")
        content.update(data)
    return content.hexdigest()[:16]


def _written(value: Any) -> Iterator[str]:
    """Yield a value as JSON, of a long list some items at a time."""
    dumps = partial(json.dumps, sort_keys=True, ensure_ascii=False)
    if not isinstance(value, (list, tuple, Iterator)):
        yield dumps(value)
        return
    items = iter(value)
    before = "["
    while some := list(islice(items, AT_A_TIME)):
        yield before + dumps(some)[1:-1]
        before = ", "
    yield "[]" if before == "[" else "]"


def file_hash(path: Path, fresh: bool = False) -> str:
    """Return the SHA-256 of a file's bytes in hex.

    The hash is remembered while inode, size and times stay the same, once the file is old enough
    for its file system's clock to tell it from the next version.

    Args:
        path: The file.
        fresh: Read every byte now, whatever is remembered.
    """
    now = stamp(Path(path))
    young = bool(now) and time.time_ns() - now[-1] < CLOCK_NS
    if fresh or young:
        return _hash_of(str(path))
    return _remembered_hash(str(path), *now)


def stamp(path: Path) -> tuple[int, ...]:
    """Return inode, size and times of a file, which change when it does; () if there is none."""
    try:
        stat = path.stat()
    except FileNotFoundError:
        return ()
    return stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns


def _hash_of(path: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@lru_cache(4096)
def _remembered_hash(path: str, *_stamp: int) -> str:
    return _hash_of(path)


def check_shipped(part: str) -> Path:
    """Return a folder of the shipped data, whose files are those that were shipped.

    Args:
        part: Its place in `data`, such as "organism/aligned".

    Raises:
        UsageError: `shipped_files_damaged`.
    """
    data = resource("data")
    for name, shipped in json.loads((data / HASHES).read_bytes()).items():
        file = data / name
        if name.startswith(f"{part}/") and not (file.is_file() and file_hash(file) == shipped):
            message = f"{file} was changed or damaged. Install ftlab again."
            raise UsageError("shipped_files_damaged", message)
    return data / part


def resource(name: str) -> Path:
    """Return the folder `data`, `notebooks` or `figures` that comes with ftlab.

    In an installed package it lies inside (`_data`), in a checkout next to the package.
    """
    installed = PACKAGE / f"_{name}"
    return installed if installed.is_dir() else PACKAGE.parent / name
