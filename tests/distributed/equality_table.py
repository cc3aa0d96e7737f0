"""The table of how far each mesh and engine is from one process: `make equality`.

python -m tests.distributed.equality_table --out docs/benchmarks/equality_cpu_DATE.md
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tests.distributed.cases import LR, STEPS, B, Case, D, Differences, K, N
from tests.distributed.test_equality import MESHES, differences

HEAD = f"""# How far a run on a mesh is from the run on one process

{STEPS} steps (lr {LR}) of n={N} d={D} k={K} B={B} on planted data: a fifth of the latents dead and
AuxK at work, clipping (a clip_norm of 0.05; "-" = off), weight average, and an eighth of the
latents made hot by their bias. Each run is compared with the plain engine on one process that knows
no mesh: largest difference over largest value, per tensor, the worst of all tensors (and steps).
Gradients are those of the first step, as clipped; weights, Adam's moments (all steps' gradients
are in them) and averages those after the last; scores are normalized MSE, L0 and silent fraction on
held-out batches. Counters of dead latents are equal in every row, as are all ranks' curves, to the
bit; "swapped" counts tokens of a last batch whose active latents differ. Real processes, gloo, one
thread each. Written by `make equality`.
"""
COLUMNS = (
    *("mesh (dp, latent)", "engine", "dtype", "exchange", "clip"),
    *("losses", "norms", "gradients", "weights", "moments", "averages", "scores", "swapped"),
)


def row(dp: int, latent: int, case: Case, found: Differences) -> str:
    if not found.same:
        raise SystemExit(f"({dp}, {latent}) {case}: counters or curves differ")
    name = case.engine if case.engine != "deepspeed" else f"deepspeed ZeRO-{case.zero_stage}"
    resumed = "" if case.resumed_at is None else f", resumed at {case.resumed_at}"
    cells = [f"({dp}, {latent})", name + resumed, case.dtype, case.exchange, case.clip or "-"]
    return line([*map(str, cells), *(f"{value:.0e}" for value in found[:7]), str(found.swapped)])


def line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    rows = []
    for dp, latent in MESHES:
        with tempfile.TemporaryDirectory() as folder:
            found = differences(dp, latent, Path(folder))
        rows += [row(dp, latent, case, one) for case, one in found.items()]
        print("\n".join(rows[-len(found) :]), flush=True)
    if options.out:
        table = [line(COLUMNS), "|---" * len(COLUMNS) + "|", *rows]
        options.out.write_text(HEAD + "\n" + "\n".join(table) + "\n")


if __name__ == "__main__":
    main()
