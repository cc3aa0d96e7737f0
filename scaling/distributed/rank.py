"""One process of a run: `python -m scaling.distributed.rank --run FOLDER --token T --attempt DIR`.

Whoever starts it sets RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT. It writes only
while the lease with that token is not succeeded. Its end is its word: exit code 0 after the common
end of all ranks, of which the leading one writes DIR/outcome.json; else DIR/rank_N.error.json. It
never waits for the others once something is wrong, as they may wait for it.
"""

from __future__ import annotations

import argparse
import importlib
import os
import re
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Never

import torch

from scaling.distributed.agreement import StopAgreement, agree, end_together
from scaling.distributed.attempt_folder import AttemptFolder
from scaling.distributed.blame import lost_others
from scaling.distributed.process_group import join, make_mesh
from scaling.distributed.ranks import DEFAULT_BODY, LEASE_LOST
from scaling.distributed.watchdog import TIMED_OUT, Watchdog
from scaling.errors import UserError
from scaling.plan import RunPlan
from scaling.runs.record import RunError, RunOutcome
from scaling.runs.store import RunFolder
from scaling.storage.lease import LeaseLost, Witness
from scaling.storage.process import die_with_parent
from scaling.train.mesh import Mesh

_LOOK_FOR_A_WISH_EVERY_S = 0.2
_LATER_THAN_THE_WATCHDOG = 1.5
"""The process group gives up later than the watchdog, whose message says more."""


@dataclass(frozen=True)
class Seat:
    """A rank's place in a run, once all have met."""

    plan: RunPlan
    folder: RunFolder
    witness: Witness
    mesh: Mesh
    stop: Callable[[], bool]
    """Collective: every rank asks after every step, and hears the same."""
    begin_at: Callable[[int], None]
    """To be told, before the first step, how many steps were done before. Collective."""


Body = Callable[[Seat], RunOutcome]
"""What a rank does. Every rank returns an outcome; the leading one's counts."""


def main(arguments: list[str] | None = None) -> Never:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--token", type=int, required=True)
    parser.add_argument("--attempt", type=Path, required=True)
    parser.add_argument("--parent", type=int, help="pid to die with")
    parser.add_argument("--body", default=DEFAULT_BODY, help="module:function to carry out")
    # DeepSpeed's launcher adds it; the environment says the same.
    parser.add_argument("--local_rank", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.parent is not None:
        die_with_parent(options.parent)
    if "SLURM_JOB_ID" in os.environ:
        # SLURM tells every process of a step; here the supervisor decides, and all end together.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    rank, attempt = int(os.environ["RANK"]), AttemptFolder(options.attempt)
    _end(_carry_out(rank, attempt, options))


def train(seat: Seat) -> RunOutcome:
    """The body of real runs."""
    from scaling.distributed.build import build_on_mesh
    from scaling.train.run import Attempt

    attempt = Attempt(
        seat.plan,
        seat.folder,
        seat.witness,
        lambda _row: None,  # the supervisor reads metrics.jsonl
        seat.stop,
        mesh=seat.mesh,
        build=build_on_mesh,
    )
    try:
        seat.begin_at(attempt.first_step)
        return attempt.carry_out()
    finally:
        attempt.checkpoints.abandon()


def _carry_out(rank: int, attempt: AttemptFolder, options: argparse.Namespace) -> int:
    """Exit code."""
    step = 0
    try:
        plan = RunPlan.from_json(RunFolder(options.run).read_plan())
        watchdog = Watchdog(rank, attempt, plan.collective_timeout_s)
        watchdog.start()
        try:
            _take_part(plan, attempt, watchdog, options)
        finally:
            step = watchdog.step
            watchdog.close()
    except LeaseLost as error:
        print(error, file=sys.stderr)
        return LEASE_LOST
    except Exception as error:
        told = _told(error, rank, step)
        print(told.traceback or told.message, file=sys.stderr)
        attempt.write_failure(rank, told)
        return 1
    return 0


def _told(error: Exception, rank: int, step: int) -> RunError:
    """Collectives that are not ours do not say where they are, nor that they timed out."""
    told = replace(RunError.of(error), rank=rank)
    if not lost_others(told):
        return told
    hung = re.search("timed out", told.message, re.I) is not None
    message = f"at step {step}: {told.message}" if step else told.message
    return replace(told, type=TIMED_OUT if hung else told.type, message=message)


def _take_part(
    plan: RunPlan, attempt: AttemptFolder, watchdog: Watchdog, options: argparse.Namespace
) -> None:
    folder, witness = RunFolder(options.run), Witness(options.run, options.token)
    mesh = _meet(plan, watchdog)
    agree(mesh, _facts(plan), "the plan of the run")
    agreement = StopAgreement(mesh, _Wish(attempt) if mesh.leads else _never)

    def stop() -> bool:
        watchdog.step += 1
        return agreement()

    def begin_at(first_step: int) -> None:
        agree(mesh, {"first_step": first_step}, "the checkpoint to go on from")
        watchdog.step = first_step + 1

    witness.check()
    outcome = _load(options.body)(Seat(plan, folder, witness, mesh, stop, begin_at))
    agreement.finish()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    end_together(mesh)
    if mesh.leads:
        witness.check()
        attempt.write_outcome(outcome)


def _meet(plan: RunPlan, watchdog: Watchdog) -> Mesh:
    """The mesh, once all ranks are there."""
    n_ranks, device = int(os.environ["WORLD_SIZE"]), plan.execution.device
    if n_ranks != plan.mesh.world_size:
        raise UserError(
            f"{n_ranks} ranks were started for a run planned with mesh.dp={plan.mesh.dp} "
            f"mesh.latent={plan.mesh.latent}: start {plan.mesh.world_size}."
        )
    torch.set_num_threads(plan.execution.threads)
    if device == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    timeout_s = _LATER_THAN_THE_WATCHDOG * plan.collective_timeout_s
    with watchdog.during("meeting the other ranks"):
        join(device=device, timeout_s=timeout_s)
        return make_mesh(plan.mesh.dp, plan.mesh.latent, device=device, watch=watchdog.during)


def _facts(plan: RunPlan) -> dict[str, Any]:
    return {
        "run_id": plan.run_id,
        "steps": plan.train.steps,
        "batch_tokens": plan.train.batch_tokens,
        "mesh": asdict(plan.mesh),
    }


class _Wish:
    """Whether the supervisor wishes the run to stop; looks at the file a few times a second."""

    def __init__(self, attempt: AttemptFolder) -> None:
        self._attempt, self._looked_at_s = attempt, float("-inf")
        self._wished = False

    def __call__(self) -> bool:
        now_s = time.monotonic()
        if not self._wished and now_s - self._looked_at_s >= _LOOK_FOR_A_WISH_EVERY_S:
            self._wished, self._looked_at_s = self._attempt.is_stop_wished(), now_s
        return self._wished


def _never() -> bool:
    return False


def _load(name: str) -> Body:
    module, _, function = name.partition(":")
    return getattr(importlib.import_module(module), function)


def _end(code: int) -> Never:
    """At once: the destructor of a process group may wait for ranks that are gone."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    main()
