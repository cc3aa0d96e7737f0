"""Seconds for 4,000 bootstrap refits of 70 runs, on one core.

python -m benchmarks.bootstrap_speed
"""

from __future__ import annotations

import os

os.environ["OPENBLAS_NUM_THREADS"] = "1"  # before numpy: one core is what is measured

import time
from itertools import product

import numpy as np

from analysis.fitting.fit import Fit, fit_law
from analysis.laws import LAWS
from analysis.laws.joint import LatentsKTokensTilted
from analysis.records.table import RunTable
from analysis.uncertainty.bootstrap import bootstrap
from analysis.uncertainty.clusters import cluster_ids

_TRUTH = LatentsKTokensTilted(
    *(-0.92, 0.60, -0.06, -0.139, -1.13, -0.35), D0=64e3, s=0.71, c=0.55, u=0.2, n0=1024.0, k0=16.0
)
_REFITS = 4000


def table() -> RunTable:
    """70 runs: seven n, five k, two budgets of a ladder that moves with n."""
    cells = [
        (n, k, 250.0 * n**0.7 * share)
        for i, n in enumerate((256, 512, 1024, 2048, 4096, 8192, 16384))
        for j, k in enumerate((4, 8, 16, 32, 64))
        for share in (4 ** ((i + j) % 3), 4 ** ((i + j) % 3) * 4)
    ]
    points = dict(zip(("n", "k", "tokens"), np.array(cells, dtype=np.float64).T, strict=True))
    noise = np.exp(0.01 * np.random.default_rng(0).standard_normal(len(cells)))
    names = tuple(map(str, range(len(cells))))
    return RunTable(points, _TRUTH.predict(points) * noise, names, "loss", names)


def main() -> None:
    runs = table()
    print(f"{len(runs)} runs, {_REFITS} refits; seconds of wall clock and of the processor")
    print("| law | fit | clusters | wall s | cpu s | not settled |\n|---|---|---|---|---|---|")
    for name, method, by in (
        *product(("l_nkd", "l_nkdu", "l_nkd_additive"), ("least_squares",), (None, "n")),
        ("l_nkdu", "huber", None),
    ):
        fit: Fit = fit_law(LAWS[name], runs, method=method)  # pyright: ignore
        ids = None if by is None else cluster_ids(runs, by)  # pyright: ignore
        wall, cpu = time.perf_counter(), time.process_time()
        refits = bootstrap(fit, _REFITS, 0, ids)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        unsettled = f"{refits.share_unsettled:.2%}"
        print(f"| {name} | {method} | {by or '-'} | {wall:.1f} | {cpu:.1f} | {unsettled} |")


if __name__ == "__main__":
    main()
