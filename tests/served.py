"""A server in a process of its own, on a free port of this machine, for tests of what others serve."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.request import ProxyHandler, build_opener

PORT = "PORT"  # the word of a command that the free port takes the place of
DIRECT = build_opener(ProxyHandler({}))


@contextmanager
def served(
    command: list[str], ready: str, folder: Path, *, within: float, **environ: str
) -> Iterator[str]:
    """Start a server and yield its address; end it with all its processes.

    Args:
        command: Its words; `PORT` stands for the port.
        ready: Path below the address that answers once the server is ready.
        folder: Where it works and what it prints is kept.
        within: Seconds until it must be ready.
        environ: Variables that it has beside those of this process.
    """
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = str(one.getsockname()[1])
    words = [port if word == PORT else word for word in command]
    said = folder / "said"
    with said.open("wb") as out:
        process = subprocess.Popen(
            words,
            env=os.environ | environ,
            cwd=folder,
            stdout=out,
            stderr=out,
            start_new_session=True,
        )
    url = f"http://127.0.0.1:{port}"
    try:
        until = time.monotonic() + within
        while not _answers(f"{url}/{ready}"):
            waiting = time.monotonic() < until and process.poll() is None
            assert waiting, said.read_text(errors="replace")[-3000:]
            time.sleep(0.2)
        yield url
    finally:
        _end(process)


def fetched(url: str) -> bytes:
    """Return what a server of this machine sends."""
    with DIRECT.open(url, timeout=120) as answer:
        return answer.read()


def _answers(url: str) -> bool:
    try:
        fetched(url)
    except OSError:
        return False
    return True


def _end(process: subprocess.Popen) -> None:
    for ending in (signal.SIGTERM, signal.SIGKILL):
        if process.poll() is None:
            os.killpg(process.pid, ending)
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            continue
        return
