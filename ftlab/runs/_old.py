"""Transition: names that moved to _core."""

from ftlab._core.errors import Busy  # noqa: F401
from ftlab._core.files import digest, file_hash, resource, storage, write_atomic  # noqa: F401
from ftlab._core.progress import clock  # noqa: F401
