"""How often each judgement accuses a right law, and how often it finds a wrong one.

    python benchmarks/judgement_levels.py [--data-sets 100]

Planted runs with independent 1% errors on a design of 60 cells (five n over 2^8, three k over 16,
four budgets over 64, scaled with n) and two more seeds in five of them. The right law is the
planted l_nkdu; wrong ones are l_nkd (no u) and l_nkdu_no_floor. Prints a markdown table.
"""

from __future__ import annotations

import argparse
from collections import defaultdict

import numpy as np

from analysis.fitting.fit import fit_law
from analysis.judgement.verdicts import Verdicts, judge_fit
from analysis.laws import LAWS
from analysis.laws.joint import LatentsKTokensTilted
from analysis.records.table import RunTable

PLANTED = LatentsKTokensTilted(
    **{"alpha": -0.92, "beta_k": 0.60, "beta_n": -0.06, "gamma": -0.139},
    **{"zeta": -1.13, "eta": -0.35, "D0": 64e3, "s": 0.71, "c": 0.55, "u": 0.2},
    **{"n0": 1024.0, "k0": 16.0},
)
NOISE = 0.01


def cells() -> np.ndarray:
    """n, k, tokens of each run, float64 [M, 3]; replicates last."""
    grid = [
        (n, k, 1e5 * (n / 256) ** 0.7 * share)
        for n in (256, 1024, 4096, 16384, 65536)
        for k in (4, 16, 64)
        for share in (1, 4, 16, 64)
    ]
    return np.array([*grid, *grid[::13], *grid[::13]])


def table(seed: int) -> RunTable:
    points = dict(zip(("n", "k", "tokens"), cells().T, strict=True))
    errors = np.random.default_rng(seed).standard_normal(len(cells()))
    loss = PLANTED.predict(points) * np.exp(NOISE * errors)
    names = tuple(str(i) for i in range(len(loss)))
    return RunTable(points, loss, names, "planted", names)


def p_values(verdicts: Verdicts) -> dict[str, float | None]:
    found: dict[str, float | None] = {"lack of fit": verdicts.lack_of_fit.p}
    found |= {f"signs along {runs.axis}": runs.p for runs in verdicts.sign_runs}
    found |= {"slices of one k": verdicts.floors.p}
    return found | {f"{test.plan} held out": test.p for test in verdicts.held_out}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-sets", type=int, default=100)
    count = parser.parse_args().data_sets
    laws = ("l_nkdu", "l_nkd", "l_nkdu_no_floor")
    p: dict[tuple[str, str], list[float]] = defaultdict(list)
    for seed in range(count):
        for law in laws:
            with np.errstate(all="ignore"):
                verdicts = judge_fit(fit_law(LAWS[law], table(seed)))
            for test, value in p_values(verdicts).items():
                p[test, law].append(np.nan if value is None else value)
    print("| judgement | " + " | ".join(f"{law}: p < 5%, p < 1%" for law in laws) + " |")
    print("|---" * (len(laws) + 1) + "|")
    for test in dict.fromkeys(test for test, _ in p):
        values = (np.array(p[test, law]) for law in laws)
        print(f"| {test} | " + " | ".join(map(shares, values)) + " |")


def shares(p: np.ndarray) -> str:
    """Of data sets with p below 5% and 1%; "-" for a test that could not be made of any."""
    return "-" if np.isnan(p).all() else f"{np.mean(p < 0.05):.0%}, {np.mean(p < 0.01):.0%}"


if __name__ == "__main__":
    main()
