"""How far plans made from a fit can be trusted, on planted sweeps: `python benchmarks/planning.py`.

Three tables for docs/planning.md: coverage of a frontier's 95% intervals by three ways of making
them; designed choices of runs against all subsets; and the error that is really left at a target
after designed and after blindly chosen runs were trained and fitted. Some minutes on one core.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "tests/unit/analysis"))
from fabricate import PLANTED, Cell, demo_cells, planted_table, points_of
from planted_fit import D_MODEL, best_variance, small_problem

from analysis.fitting.fit import fit_law
from analysis.laws.joint import LatentsKTokensTilted
from analysis.planning.choice import Problem, choose, random_choice
from analysis.planning.compute import Convention
from analysis.planning.cost import FlopsCost
from analysis.planning.design import candidate_grid, design_runs
from analysis.planning.frontier import frontier
from analysis.planning.stored import StoredLaw, of_fitted
from analysis.planning.variants import Resampled, nudged, resampled
from analysis.study.fitted import fit_table

DENSE = Convention("dense", D_MODEL)
BUDGETS = [1e13, 1e14]
TARGET = points_of([Cell(16384, 32, 4_000_000)])
LARGEST = 2e14
NOISE = 0.01


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sets", type=int, default=200, help="planted sweeps for the intervals")
    parser.add_argument("--plans", type=int, default=60, help="planted sweeps for the designs")
    options = parser.parse_args()
    coverage_table(options.sets)
    subset_table()
    design_table(options.plans)


def coverage_table(n_sets: int) -> None:
    """Share of planted sweeps whose interval holds the planted frontier."""
    truth = StoredLaw(PLANTED, "", "", "", 0, None, 0.0, 1, {}, {})
    true = frontier(truth, BUDGETS, [16.0], DENSE, n_range=(16, 1e6))
    quantities = ("n", "tokens", "loss")
    inside: dict[str, list[list[bool]]] = {"delta method": [], "400 refits": [], "drawn laws": []}
    for seed in range(n_sets):
        table = planted_table(PLANTED, demo_cells(), NOISE, seed)
        fitted = fit_table(LatentsKTokensTilted, table, n_bootstrap=400, seed=seed)
        stored = of_fitted(fitted, D_MODEL)
        assert fitted.refits is not None
        kinds = (nudged(stored), resampled(fitted.refits), _drawn(stored, seed))
        for name, variants in zip(inside, kinds, strict=True):
            found = frontier(stored, BUDGETS, [16.0], DENSE, n_range=(16, 1e6), variants=variants)
            row = []
            for point, planted in zip(found.points, true.points, strict=True):
                for quantity in quantities:
                    estimate = getattr(point, quantity)
                    # The loss is asked of the plan made, so the truth is the planted law's there.
                    at = {"n": point.n.value, "k": 16.0, "tokens": point.tokens.value}
                    value = (
                        float(PLANTED.predict({a: np.array([v]) for a, v in at.items()})[0])
                        if quantity == "loss"
                        else getattr(planted, quantity).value
                    )
                    row.append(estimate.low <= value <= estimate.high)
            inside[name].append(row)
    labels = [f"{q} at {p.flops:.0e}, {p.rule}" for p in true.points for q in quantities]
    print(f"\n| {n_sets} planted sweeps: interval of | {' | '.join(inside)} |\n|---|---|---|---|")
    shares = {name: np.mean(rows, axis=0) for name, rows in inside.items()}
    for column, label in enumerate(labels):
        print(f"| {label} | {' | '.join(f'{share[column]:.3f}' for share in shares.values())} |")


def _drawn(stored: StoredLaw, seed: int) -> Resampled:
    """Laws drawn from the covariance: the way that is not taken."""
    rng = np.random.default_rng(seed)
    center, spread = stored.law.coefficients(), stored.coefficient_covariance()
    return Resampled(rng.multivariate_normal(center, spread, 400, method="eigh"))


def subset_table() -> None:
    """Small problems of which every subset can be tried."""
    excess, blind = [], []
    for seed in range(300):
        problem, rng = small_problem(seed, 8), np.random.default_rng(seed)
        best = best_variance(problem)
        excess.append(choose(problem).variances[-1] / best - 1)
        chance = [problem.variance(random_choice(problem, rng)) for _ in range(50)]
        blind.append(np.median(chance) / best - 1)
    exact = np.mean(np.array(excess) < 1e-9)
    print("\n| 300 small problems | best of all subsets found | worst variance above it | blind |")
    print("|---|---|---|---|")
    print(f"| | {exact:.1%} | {max(excess):.1%} | {np.median(blind):.0%} above it (median) |")


def design_table(n_plans: int) -> None:
    """Error of ln L at the target against the planted law, before and after training the runs."""
    cost = FlopsCost(DENSE)
    grid = candidate_grid((512, 1024, 2048, 4096, 8192), (8, 16, 32, 64), (250e3, 1e6, 4e6))
    truth = PLANTED.log_predict(TARGET)[0]
    errors: dict[str, list[float]] = {"as they are": [], "designed": [], "blind": []}
    foretold: dict[str, list[float]] = {name: [] for name in errors}
    for seed in range(n_plans):
        first = planted_table(PLANTED, demo_cells(), NOISE, seed)
        fit = fit_table(LatentsKTokensTilted, first, n_bootstrap=0)
        design = design_runs(of_fitted(fit), grid, TARGET, cost, LARGEST, replicates=2)
        errors["as they are"].append(float(fit.fit.log_predict(TARGET)[0] - truth))
        for name, value in zip(
            errors, (design.sd_before, design.sd_after, design.sd_blind), strict=True
        ):
            foretold[name].append(value)
        designed = [Cell(round(r.n), round(r.k), round(r.tokens)) for r in design.runs]
        counts = random_choice(_prices(cost.of(grid)), np.random.default_rng(seed))
        columns = [grid[axis].repeat(counts) for axis in ("n", "k", "tokens")]
        blind = [Cell(*map(round, cell)) for cell in zip(*columns, strict=True)]
        for name, cells in (("designed", designed), ("blind", blind)):
            table = planted_table(PLANTED, [*demo_cells(), *cells], NOISE, seed=10_000 + seed)
            again = fit_law(LatentsKTokensTilted, table)
            errors[name].append(float(again.log_predict(TARGET)[0] - truth))
    print(f"\n| runs ({n_plans} planted sweeps) | foretold sd | rms error of ln L | +- |")
    print("|---|---|---|---|")
    for name, values in errors.items():
        rms = float(np.sqrt(np.mean(np.square(values))))
        error = rms / np.sqrt(2 * len(values))
        print(f"| {name} | {np.median(foretold[name]):.2%} | {rms:.2%} | {error:.2%} |")


def _prices(cost: np.ndarray) -> Problem:
    nothing = np.zeros((len(cost), 1))
    return Problem(nothing, nothing[:1], cost, LARGEST, limit=2)


if __name__ == "__main__":
    main()
