"""A SLURM of two virtual nodes on this machine: `python -m tests.slurm.cluster COMMAND ...`.

Real munged, slurmctld and slurmd processes on loopback, with a key, socket, ports and folders of
their own, so that a SLURM this machine may belong to is not touched. COMMAND runs with SLURM_CONF
set; all of it ends with COMMAND. Needs the programs of the Debian packages slurm-wlm and munge.
"""

from __future__ import annotations

import os
import pwd
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

import psutil

NODES = ("n1", "n2")
CPUS_PER_NODE = 8
"""More than there are: SLURM only counts them."""
STARTS_WITHIN_S = 30.0
_PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue", "scancel", "scontrol")
_SBIN = ("/usr/sbin", "/usr/local/sbin", "/sbin")


def missing_programs() -> list[str]:
    return [name for name in _PROGRAMS if which(name) is None]


def which(name: str) -> str | None:
    path = os.pathsep.join([os.environ.get("PATH", ""), *_SBIN])
    return shutil.which(name, path=path)


class VirtualCluster:
    """Up within the `with` block; `environment` is what SLURM's commands need."""

    def __init__(self) -> None:
        # Short: a socket's path may have 107 characters.
        self.folder = Path(tempfile.mkdtemp(prefix="slurm-", dir="/tmp"))
        self._daemons: dict[str, subprocess.Popen[bytes]] = {}
        self._ports = dict(zip(("slurmctld", *NODES), free_ports(1 + len(NODES)), strict=True))

    @property
    def _configured(self) -> str:
        return f"SLURM_CONF={self.folder}/slurm.conf"

    @property
    def environment(self) -> dict[str, str]:
        return {"SLURM_CONF": str(self.folder / "slurm.conf")}

    def __enter__(self) -> VirtualCluster:
        try:
            self._start()
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    def start_node(self, name: str) -> None:
        self._spawn(name, "slurmd", "-D", "-N", name)

    def kill_node(self, name: str) -> None:
        """As if its machine lost power: the slurmd, its steps and all they started."""
        daemon = self._daemons[name]
        daemon.kill()
        daemon.wait()
        kill_those_with(f"SLURMD_NODENAME={name}", self._configured)

    def _start(self) -> None:
        self._write_key()
        for name in ("state", *(f"spool-{node}" for node in NODES), "logs"):
            (self.folder / name).mkdir()
        (self.folder / "slurm.conf").write_text(self._configuration())
        socket_path = self.folder / "munge.socket"
        munged = [f"--key-file={self.folder / 'munge.key'}", f"--socket={socket_path}"]
        munged += [f"--{name}-file={self.folder / f'munge.{name}'}" for name in ("pid", "seed")]
        log = f"--log-file={self.folder / 'logs' / 'munge.log'}"
        self._spawn("munged", "munged", "--foreground", "--force", log, *munged)
        self._wait(socket_path.exists, "munged")
        self._spawn("slurmctld", "slurmctld", "-D", "-i")
        for node in NODES:
            self.start_node(node)
        self._wait(self._nodes_are_idle, "slurmctld and slurmd")

    def _write_key(self) -> None:
        key = self.folder / "munge.key"
        key.touch(mode=0o600)
        key.write_bytes(secrets.token_bytes(1024))

    def _spawn(self, name: str, program: str, *arguments: str) -> None:
        path = which(program)
        assert path is not None, f"{program} is not installed"
        with (self.folder / "logs" / f"{name}.out").open("ab") as log:
            self._daemons[name] = subprocess.Popen(
                [path, *arguments],
                env={**os.environ, **self.environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def _wait(self, is_up, what: str) -> None:
        deadline = time.monotonic() + STARTS_WITHIN_S
        while not is_up():
            dead = [name for name, daemon in self._daemons.items() if daemon.poll() is not None]
            if dead or time.monotonic() > deadline:
                logs = "\n".join(
                    f"== {log.name}\n{log.read_text(errors='replace')[-2000:]}"
                    for log in sorted((self.folder / "logs").iterdir())
                )
                raise RuntimeError(f"{what} did not come up (ended: {dead})\n{logs}")
            time.sleep(0.2)

    def _nodes_are_idle(self) -> bool:
        answer = subprocess.run(
            ["sinfo", "--noheader", "--Node", "--format=%T"],
            env={**os.environ, **self.environment},
            capture_output=True,
            text=True,
        )
        return answer.stdout.split() == ["idle"] * len(NODES)

    def _stop(self) -> None:
        with suppress(OSError, subprocess.SubprocessError):
            subprocess.run(
                ["scancel", "--user", _user(), "--signal=KILL"],
                env={**os.environ, **self.environment},
                capture_output=True,
                timeout=10,
            )
        for daemon in self._daemons.values():
            daemon.terminate()
        for daemon in self._daemons.values():
            try:
                daemon.wait(10)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
        kill_those_with(self._configured)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _configuration(self) -> str:
        host = socket.gethostname()
        ports = self._ports
        nodes = "\n".join(
            f"NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[name]} "
            f"CPUs={CPUS_PER_NODE} RealMemory=4000 State=UNKNOWN"
            for name in NODES
        )
        return f"""
ClusterName=virtual
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports["slurmctld"]}
SlurmUser={_user()}
SlurmdUser={_user()}
AuthType=auth/munge
AuthInfo=socket={self.folder}/munge.socket
CredType=cred/munge
StateSaveLocation={self.folder}/state
SlurmdSpoolDir={self.folder}/spool-%n
SlurmctldPidFile={self.folder}/slurmctld.pid
SlurmdPidFile={self.folder}/slurmd-%n.pid
SlurmctldLogFile={self.folder}/logs/slurmctld.log
SlurmdLogFile={self.folder}/logs/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=2,bf_interval=2
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
JobAcctGatherType=jobacct_gather/none
SlurmdParameters=config_overrides
SlurmdTimeout=10
InactiveLimit=0
KillWait=5
MinJobAge=60
ReturnToService=2
{nodes}
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def kill_those_with(*variables: str) -> None:
    """End the processes with all of these in their environment, the steps of jobs, which may
    outlive their slurmd; and before each, the slurmstepd that would tell of its end."""
    wanted = {variable.encode() for variable in variables}
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError, psutil.Error):
            if folder.name == str(os.getpid()):
                continue
            if wanted <= set((folder / "environ").read_bytes().split(b"\0")):
                process = psutil.Process(int(folder.name))
                parent = process.parent()
                if parent is not None and parent.name().startswith("slurmstepd"):
                    parent.kill()
                process.kill()


def free_ports(n: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(n)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def _user() -> str:
    return pwd.getpwuid(os.getuid()).pw_name


def main(command: Sequence[str]) -> int:
    if missing := missing_programs():
        names = ", ".join(missing)
        print(f"not found: {names}. Debian: apt-get install slurm-wlm munge", file=sys.stderr)
        return 2
    with VirtualCluster() as cluster:
        return subprocess.run(command, env={**os.environ, **cluster.environment}).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
