"""One host of a sweep whose launch cannot reach it: `python -m scaling.join RUNS_DIR/SWEEP --host
NAME`, for launcher=deepspeed launcher.remote=none.

Starts this host's ranks of each run that the launch begins, and ends with the launch. NAME is this
host's in the hostfile. May be started before the launch or after it.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

from scaling.distributed.attempt_folder import AttemptFolder
from scaling.errors import UserError
from scaling.launcher_config import DeepSpeedLauncherConfig
from scaling.launchers.hostfile import Host
from scaling.launchers.hosts import NO_REMOTE, announced_try, runner_command, start_runner
from scaling.runs.store import SweepStore
from scaling.sweep.stop import launches_of

_POLL_S = 0.5
_END_WITHIN_S = 20.0
"""After a try was aborted, its ranks end by themselves."""


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sweep_dir", type=Path)
    parser.add_argument("--host", required=True, help="this host's name in the hostfile")
    options = parser.parse_args(arguments)
    try:
        join(SweepStore(options.sweep_dir.absolute()), options.host)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


def join(store: SweepStore, host: str) -> None:
    """Serve until the launch has ended; waits for one to begin."""
    seen, last = False, None
    while not seen or launches_of(store):
        seen = seen or bool(launches_of(store))
        told = announced_try(store.path)
        if told is not None and seen and told["attempt"] != last:
            last = told["attempt"]
            _take_part(told, host)
        time.sleep(_POLL_S)


def _take_part(told: dict[str, Any], name: str) -> None:
    """This host's ranks of one try, from their start to their end."""
    hosts = [Host(**row) for row in told["hosts"]]
    attempt = AttemptFolder(Path(told["attempt"]))
    names = [host.name for host in hosts]
    if attempt.is_aborted() or attempt.read_outcome() is not None or name not in names:
        return  # over already, or a run of few processes, which needs fewer hosts
    launcher = DeepSpeedLauncherConfig(remote=NO_REMOTE, master_port=told["master_port"])
    hostfile, node = attempt.path / "hostfile", names.index(name)
    command = runner_command(hostfile, hosts, launcher, told["arguments"], node=node)
    print(f"{attempt.path}: {hosts[node].slots} ranks as node {node}", flush=True)
    process = start_runner(command, attempt.path / f"deepspeed-{node}.log")
    aborted_at: float | None = None
    try:
        while process.poll() is None:
            if aborted_at is None and attempt.is_aborted():
                aborted_at = time.monotonic()
            if aborted_at is not None and time.monotonic() - aborted_at > _END_WITHIN_S:
                process.terminate()
            time.sleep(_POLL_S)
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait()


if __name__ == "__main__":
    sys.exit(main())
