"""A Slurm cluster of two nodes on this machine: slurmctld, two slurmd, all files in one folder."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from pathlib import Path

PROGRAMS = ("slurmctld", "slurmd", "sbatch", "squeue", "scontrol")
START_S = 30
ARRAY_SIZE = 5  # tasks of an array, at most
CONFIGURATION = """
ClusterName=ftlab
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CredType=cred/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
JobRequeue=1
MaxArraySize={array_size}
ReturnToService=2
KillWait=10
SchedulerParameters=sched_interval=2,batch_sched_delay=0
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/%n.log
NodeName=one NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=1
NodeName=two NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=1
PartitionName=main Nodes=one,two Default=YES State=UP
"""


def is_installed() -> bool:
    """Return whether the programs of Slurm are there, and may be started."""
    return os.getuid() == 0 and all(map(shutil.which, (*PROGRAMS, "munged")))


class Cluster:
    """Starts the daemons; `stop` ends them."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.daemons: list[subprocess.Popen] = []
        for name in ("state", "one", "two"):
            (folder / name).mkdir()
        folder.chmod(0o755)
        key = folder / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o600)
        settings = {"folder": folder, "host": socket.gethostname(), "ports": free_ports(3)}
        settings["array_size"] = ARRAY_SIZE
        configuration = folder / "slurm.conf"
        configuration.write_text(CONFIGURATION.format(**settings))
        self.environ = {"SLURM_CONF": str(configuration)}
        munge = [f"--{name}-file={folder}/munge.{name}" for name in ("key", "log", "pid", "seed")]
        self._start("munged", "--foreground", "--force", f"--socket={folder}/munge.socket", *munge)
        self._start("slurmctld", "-D", "-i")
        for node in ("one", "two"):
            self._start("slurmd", "-D", "-N", node)
        self._wait_until_idle()

    def _start(self, *words: str) -> None:
        with open(self.folder / f"{words[0]}-{len(self.daemons)}.said", "wb") as said:
            environ = {**os.environ, **self.environ}
            daemon = subprocess.Popen(words, env=environ, stdout=said, stderr=said)
        self.daemons.append(daemon)

    def _wait_until_idle(self) -> None:
        until = time.monotonic() + START_S
        while self.ask("sinfo", "--noheader", "--format=%T %D").split() != ["idle", "2"]:
            assert time.monotonic() < until, self.said()
            time.sleep(0.5)

    def ask(self, *words: str) -> str:
        """Return what a program of Slurm prints."""
        environ = {**os.environ, **self.environ}
        return subprocess.run(words, env=environ, capture_output=True, text=True).stdout

    def said(self) -> str:
        """Return what the daemons have printed."""
        texts = []
        for path in sorted([*self.folder.glob("*.said"), *self.folder.glob("*.log")]):
            texts.append(f"{path.name}:\n{path.read_text(errors='replace')[-2000:]}")
        return "\n".join(texts)

    def stop(self) -> None:
        """End the daemons, the last first."""
        self.ask("scancel", "--user=root")
        for daemon in reversed(self.daemons):
            daemon.terminate()
            try:
                daemon.wait(20)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()


def free_ports(count: int) -> list[int]:
    """Return ports that nobody listens on."""
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports
