"""A Ray cluster on this machine: a head and other nodes, each the processes of one `ray start`."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[2]
START_S = 90
STARTS = 3
STARTED = "Ray runtime started."
OBJECTS = 100 * 2**20  # bytes of each node's store of objects, which sweeps leave empty
GIB = 2**30
HEAD = {"num-cpus": 1, "num-gpus": 0, "memory": 2 * GIB}
NODE = {"num-cpus": 2, "num-gpus": 1, "memory": 8 * GIB}  # what Ray counts; no GPU is needed
ALONE = ("--include-dashboard=false", "--include-log-monitor=false", "--no-monitor")
CODE = "from ray.scripts.scripts import main; main()"
NODES = "import ray; ray.init('{address}'); print(sum(n['Alive'] for n in ray.nodes()), 'alive')"


class Cluster:
    """Starts the head; `join` starts another node, `kill` is its loss, `stop` ends everything."""

    def __init__(self):
        self.folder = Path(tempfile.mkdtemp(prefix="ray", dir="/tmp"))  # paths of sockets are short
        self.port = free_port()
        self.address = f"127.0.0.1:{self.port}"
        self.environ = {
            "PYTHONPATH": str(ROOT),
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_health_check_period_ms": "1000",
            "RAY_health_check_initial_delay_ms": "0",
        }
        self.nodes: list[subprocess.Popen] = []
        self.temporary = f"--temp-dir={self.folder}/r"
        self.start(HEAD, "--head", f"--port={self.port}", *ALONE)

    def join(self) -> subprocess.Popen:
        """Start a node and return its process."""
        return self.start(NODE, f"--address={self.address}")

    def start(self, resources: dict[str, int], *words: str) -> subprocess.Popen:
        """Start a node; Ray gives it 30 s, which a busy machine may exceed, and ends it then."""
        given = [
            *[f"--{name}={count}" for name, count in resources.items()],
            "--node-ip-address=127.0.0.1",
            f"--object-store-memory={OBJECTS}",
            self.temporary,
            "--block",
            *words,
        ]
        for _ in range(STARTS):
            path = self.folder / f"{len(self.nodes)}.said"
            with open(path, "wb") as said:
                node = subprocess.Popen(
                    [sys.executable, "-c", CODE, "start", *given],
                    env={**os.environ, **self.environ},
                    stdout=said,
                    stderr=said,
                )
            self.nodes.append(node)
            if self.is_up(node, path):
                return node
            self.nodes.remove(node)
        raise AssertionError(self.said())

    def is_up(self, node: subprocess.Popen, said: Path) -> bool:
        """Wait until a node says that it runs; return False where it has ended or says nothing."""
        until = time.monotonic() + START_S
        while node.poll() is None and time.monotonic() < until:
            if STARTED in said.read_text(errors="replace"):
                return True
            time.sleep(0.5)
        self.lose([node])
        return False

    def alive(self) -> int:
        """Return how many nodes the head counts."""
        words = [sys.executable, "-c", NODES.format(address=self.address)]
        environ = {**os.environ, **self.environ}
        done = subprocess.run(words, env=environ, capture_output=True, text=True)
        count, _, word = done.stdout.strip().rpartition("\n")[2].partition(" ")
        return int(count) if word == "alive" else 0

    def said(self) -> str:
        """Return what the nodes have printed."""
        texts = []
        for path in sorted(self.folder.glob("*.said")):
            texts.append(f"{path.name}:\n{path.read_text(errors='replace')[-3000:]}")
        return "\n".join(texts)

    def lose(self, nodes: list[subprocess.Popen]) -> None:
        """Kill those of some nodes that still run, the last first."""
        for node in reversed(nodes):
            if node.poll() is None:
                kill(node)

    def stop(self) -> None:
        """End the nodes, the last first."""
        self.lose(self.nodes)
        shutil.rmtree(self.folder, ignore_errors=True)


def working(node: subprocess.Popen) -> dict[int, psutil.Process]:
    """Return the processes that do jobs of a sweep on a node, by job."""
    found = {}
    for process in children(node):
        try:
            words = process.cmdline()
        except psutil.Error:
            continue
        if words[-2:-1] == ["--jobs"]:
            found[int(words[-1])] = process
    return found


def children(node: subprocess.Popen) -> list[psutil.Process]:
    return psutil.Process(node.pid).children(recursive=True)


def kill(node: subprocess.Popen) -> None:
    """Kill every process of a node at once, as if its machine had lost its power."""
    lost = [psutil.Process(node.pid), *children(node)]
    for process in lost:
        try:
            process.suspend()
        except psutil.NoSuchProcess:
            continue
    for process in lost:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue
    node.wait()


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]
