"""A real Slurm of one node, in a folder and on ports of its own, for tests."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "srun")

CONFIGURATION = """\
ClusterName=one
SlurmctldHost={host}
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
ReturnToService=2
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
NodeName={host} CPUs=2 RealMemory=20000 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def missing() -> str | None:
    """Why it cannot be had here, if it cannot."""
    if absent := [program for program in PROGRAMS if not (shutil.which(program) or Path("/usr/sbin", program).exists())]:
        return f"needs {', '.join(absent)} (Debian's slurm-wlm and munge)"
    return None if os.geteuid() == 0 else "needs root, whom Slurm's daemons take their jobs from"


@contextmanager
def one_node(folder: Path) -> Iterator[dict[str, str]]:
    """The environment in which Slurm's commands reach a cluster that runs while the block does; ``folder`` must be root's, and its path short."""
    host = socket.gethostname().partition(".")[0]
    for name in ("state", "spool"):
        (folder / name).mkdir()
    (folder / "munge.key").write_bytes(os.urandom(128))
    (folder / "munge.key").chmod(0o400)
    (folder / "slurm.conf").write_text(CONFIGURATION.format(host=host, folder=folder, ports=_free_ports(2)))
    srun = folder / "bin" / "srun"  # which snakemake's executor calls with an environment that has lost where the configuration is
    srun.parent.mkdir()
    srun.write_text(f'#!/bin/sh\nSLURM_CONF={folder}/slurm.conf exec {shutil.which("srun")} "$@"\n')
    srun.chmod(0o755)
    environment = os.environ | {"SLURM_CONF": str(folder / "slurm.conf"), "PATH": f"{srun.parent}:{os.environ['PATH']}:/usr/sbin"}
    files = [f"--{name}={folder}/munge.{end}" for name, end in (("socket", "socket"), ("key-file", "key"), ("pid-file", "pid"), ("log-file", "log"))]
    with ExitStack() as stack:
        for command in (["munged", "-F", "--force", *files, f"--seed-file={folder}/munge.seed"], ["slurmctld", "-D"], ["slurmd", "-D"]):
            log = stack.enter_context((folder / f"{command[0]}.out").open("wb"))
            process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
            stack.callback(process.wait)
            stack.callback(process.terminate)
            time.sleep(1)
        deadline = time.monotonic() + 60
        while "idle" not in subprocess.run(["sinfo", "-h", "-o", "%T"], env=environment, capture_output=True, text=True, check=False).stdout:
            assert time.monotonic() < deadline, [file.read_text()[-500:] for file in folder.glob("*.out")]
            time.sleep(0.5)
        yield environment


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for free in sockets:
            free.bind(("127.0.0.1", 0))
        return [free.getsockname()[1] for free in sockets]
