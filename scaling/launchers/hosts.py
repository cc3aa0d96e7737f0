"""launcher=deepspeed: the ranks of a run on the hosts of a hostfile, by DeepSpeed's launcher.

A worker on this host holds the run's lease and supervises, as for local ranks; only the ranks are
started another way: DeepSpeed's runner reaches each host (pdsh over ssh, or another of its ways)
and starts them there. With launcher.remote=none nothing is reached: this host, the first of the
file, starts its own ranks, and `python -m scaling.join` on each of the others theirs.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from scaling.distributed.attempt_folder import AttemptFolder
from scaling.distributed.ranks import DEFAULT_BODY, Ended
from scaling.errors import UserError
from scaling.launcher_config import DeepSpeedLauncherConfig
from scaling.launchers.hostfile import Host, hosts_for, read_hostfile
from scaling.plan import RunPlan
from scaling.runs.record import RunError, RunOutcome
from scaling.runs.store import RunFolder
from scaling.storage.atomic import read_json, write_json
from scaling.storage.lease import Lease
from scaling.storage.process import how_it_ended

RUNNER = "scaling.launchers.hosts:supervise_on_hosts"
NO_REMOTE = "none"
END_WITHIN_S = 15.0
"""After the first failure; DeepSpeed's launcher looks once a second on each host."""
_STOP_WITHIN_S = 20.0
_LOG = "deepspeed.log"
_LAST_LINES = 30


def supervise_on_hosts(
    folder: RunFolder,
    lease: Lease,
    report: Callable[[dict[str, Any]], None],
    stop: Callable[[], bool],
    *,
    body: str = DEFAULT_BODY,
) -> RunOutcome:
    """A `scaling.take_up.Runner`."""
    from scaling.distributed.supervise import Supervisor

    plan = RunPlan.from_json(folder.read_plan())
    ranks = partial(hosts_group, plan, folder, lease.token, body)
    return Supervisor(folder, lease, report, stop, ranks).carry_out()


def hosts_group(plan: RunPlan, folder: RunFolder, token: int, body: str) -> HostsGroup:
    from scaling.distributed.supervise import rank_arguments

    launcher = DeepSpeedLauncherConfig(**plan.config["launcher"])
    hostfile = launcher.hostfile
    assert hostfile is not None  # checked at launch
    hosts = hosts_for(read_hostfile(Path(hostfile)), plan.mesh.world_size, hostfile)
    return HostsGroup(hosts, launcher, rank_arguments(folder, token, body=body))


class HostsGroup:
    """A `RankGroup`: one call of DeepSpeed's runner, which ends when all ranks have."""

    def __init__(
        self, hosts: Sequence[Host], launcher: DeepSpeedLauncherConfig, arguments: Sequence[str]
    ) -> None:
        """`arguments` of scaling.distributed.rank, but for --attempt."""
        self._hosts, self._launcher, self._arguments = hosts, launcher, arguments
        self._attempt: AttemptFolder | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._failed_since_s: float | None = None

    def start(self, attempt: AttemptFolder) -> None:
        self._attempt = attempt
        path = attempt.path.absolute()
        (path / "hostfile").write_text("".join(f"{host}\n" for host in self._hosts))
        arguments = [*self._arguments, "--attempt", str(path)]
        if self._launcher.remote == NO_REMOTE:
            announce_try(path, self._hosts, self._launcher, arguments)
        command = runner_command(path / "hostfile", self._hosts, self._launcher, arguments, node=0)
        self._process = start_runner(command, path / _LOG)

    def poll(self) -> Ended | None:
        assert self._process is not None
        assert self._attempt is not None
        code = self._process.poll()
        if code is None:
            self._hurry()
            return None
        if code == 0:
            return Ended()
        message = f"DeepSpeed's launcher {how_it_ended(code)}"
        return Ended(problem=RunError("LauncherEnded", message, self._last_words()))

    def stop(self) -> None:
        """The ranks of all hosts end by themselves once the try is aborted; this ends the rest."""
        if self._process is None:
            return
        if self._process.poll() is None:
            self._process.terminate()
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(_STOP_WITHIN_S)
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def _hurry(self) -> None:
        """When a rank has failed, those of other hosts may wait for it longer than need be."""
        assert self._attempt is not None
        if self._failed_since_s is None and self._attempt.failures():
            self._failed_since_s = time.monotonic()
        if self._failed_since_s and time.monotonic() - self._failed_since_s > END_WITHIN_S:
            self._attempt.abort("a rank has failed")
            self.stop()

    def _last_words(self) -> str:
        assert self._attempt is not None
        lines = (self._attempt.path / _LOG).read_text(errors="replace").splitlines()
        return "\n".join(lines[-_LAST_LINES:])


def runner_command(
    hostfile: Path,
    hosts: Sequence[Host],
    launcher: DeepSpeedLauncherConfig,
    arguments: Sequence[str],
    *,
    node: int,
) -> list[str]:
    """The call of DeepSpeed's runner; `node` counts only where each host is on its own."""
    remote = launcher.remote
    reach = (
        ["--no_ssh", "--node_rank", str(node)]
        if remote == NO_REMOTE
        # --force_multi: a single host is not this one, either.
        else ["--launcher", remote, "--force_multi", "--no_ssh_check"]
    )
    return [
        *(sys.executable, "-m", "deepspeed.launcher.runner", "--hostfile", str(hostfile)),
        *(*reach, "--master_addr", hosts[0].name, "--master_port", str(launcher.master_port)),
        *("--no_local_rank", "--module", "scaling.distributed.rank", *arguments),
    ]


def start_runner(command: Sequence[str], log_path: Path) -> subprocess.Popen[bytes]:
    # DeepSpeed has the other hosts change to this folder, and hands PYTHON* variables on.
    root = str(Path(__file__).parents[2])
    path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    with log_path.open("ab") as log:
        return subprocess.Popen(
            command,
            cwd=log_path.parent,
            env={**os.environ, "PYTHONPATH": path},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


# ---------------------------------------------------------------- hosts that nothing reaches


def announce_try(
    attempt: Path,
    hosts: Sequence[Host],
    launcher: DeepSpeedLauncherConfig,
    arguments: Sequence[str],
) -> None:
    """Tell `scaling.join` on the other hosts which ranks to start now: SWEEP/try.json."""
    sweep = attempt.parents[3]
    content = {
        "attempt": str(attempt),
        "hosts": [asdict(host) for host in hosts],
        "master_port": launcher.master_port,
        "arguments": list(arguments),
    }
    write_json(sweep / "try.json", content)


def announced_try(sweep: Path) -> dict[str, Any] | None:
    with suppress(FileNotFoundError, UserError):
        return read_json(sweep / "try.json")
    return None
