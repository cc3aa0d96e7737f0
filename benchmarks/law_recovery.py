"""Do fits find a planted law, and do their intervals hold it as often as they say?

    python -m benchmarks.law_recovery --out TABLES.md [--sets 200] [--refits 400] [--part NAME]

Four designs: the paper's grid (n = 2^11 .. 2^19 x k = 32 .. 512, converged) and the demo's cells at
one budget for l_nk; the demo's cells with their token ladders, and the paper's grid at 1/64, 1/16,
1/4 and 1 of D*(n) tokens for l_nkd. Three parts:

    independent  1% noise: share of wrong optima, coverage of nominal 95% intervals
    shared       1% shared by all runs of one n and 0.5% of each run: plain against clustered
    outliers     1% noise and 5% of the runs at +20 to +50%: least squares against Huber

Every +- is one Monte-Carlo standard error over data sets (points of one data set are not
independent, so they count as one). About half an hour on one core.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np

from analysis.fitting.fit import Fit, fit_law, solve
from analysis.laws.forms import Array, Points
from analysis.laws.joint import LatentsAndK, LatentsKTokens, OfSizes
from analysis.records.table import RunTable
from analysis.uncertainty.bootstrap import bootstrap
from analysis.uncertainty.clusters import Clusters, cluster_ids, t_intervals
from analysis.uncertainty.doubt import Doubt, plain_doubt, prediction_interval
from analysis.uncertainty.interval import Interval

# Optimum of the paper's GPT-4 points, with tokens to convergence ~ n^0.65.
_PAPER = (-0.4224, 0.2397, -0.0271, -0.0383, -1.3189, -0.0965)
# Close to what small sweeps of a real model gave.
_DEMO = (-0.92, 0.60, -0.06, -0.139, -1.13, -0.35)
_LADDER = (1 / 64, 1 / 16, 1 / 4, 1)
_D_STAR, _BUDGET_EXPONENT = 1e9, 0.65  # tokens at n = 2^15, and how they grow
_WRONG = 1e-6  # relative excess of the cost over that of a fit begun at the truth


@dataclass(frozen=True)
class Design:
    name: str
    truth: OfSizes
    points: Points

    @property
    def law(self) -> type[OfSizes]:
        return type(self.truth)

    @property
    def beyond(self) -> Points:
        """The cells of the largest n, at twice that n."""
        largest = self.points["n"] == self.points["n"].max()
        there = {axis: values[largest] for axis, values in self.points.items()}
        return {**there, "n": 2 * there["n"]}

    def table(self, noise: Array) -> RunTable:
        loss = self.truth.predict(self.points) * np.exp(noise)
        names = tuple(map(str, range(len(loss))))
        return RunTable(dict(self.points), loss, names, "loss", (None,) * len(loss))

    def fit(self, noise: Array, method: str = "least_squares") -> Fit:
        reference = {"n": self.truth.reference.get("n0", 1.0), "k": 1.0}
        return fit_law(self.law, self.table(noise), reference, method=method)  # pyright: ignore


def designs() -> tuple[Design, ...]:
    paper = list(product(2.0 ** np.arange(11, 20), 2.0 ** np.arange(5, 10)))
    budgets = [(n, k, _D_STAR * (n / 2**15) ** _BUDGET_EXPONENT) for n, k in paper]
    ladders = [(n, k, share * tokens) for n, k, tokens in budgets for share in _LADDER]
    demo = list(_demo_cells())
    common = [cell for cell in demo if cell[2] == 5e5]
    # 1/64 of D*(n) leaves a run 41% above its limit, D*(n) itself 3%.
    long = LatentsKTokens(*_PAPER, D0=_D_STAR / 256, s=_BUDGET_EXPONENT, c=0.65, n0=2.0**15)
    short = LatentsKTokens(*_DEMO, D0=64e3, s=0.71, c=0.55, n0=1024.0)
    return (
        Design("l_nk, paper's grid", LatentsAndK(*_PAPER), _points(budgets, "n", "k")),
        Design("l_nk, demo's cells at 500k", LatentsAndK(*_DEMO), _points(common, "n", "k")),
        Design("l_nkd, demo's cells", short, _points(demo, "n", "k", "tokens")),
        Design("l_nkd, paper's grid, ladders", long, _points(ladders, "n", "k", "tokens")),
    )


def _demo_cells() -> Iterator[tuple[float, float, float]]:
    """The 42 runs of sweeps/demo.yaml."""
    ladders = {256: (125, 250, 500), 512: (125, 250, 500)}
    for n, k in product((256, 512, 1024, 2048, 4096), (4, 8, 16, 32, 64)):
        for tokens in ladders.get(n, (250, 500, 1000)):
            known = k <= n / 16 and (k in (4, 16, 64) or (tokens == 500 and n < 2048))
            if known and (tokens < 1000 or n < 4096 or k == 16):
                yield n, k, 1e3 * tokens


def _points(cells: Iterable[tuple[float, ...]], *axes: str) -> Points:
    columns = np.array([cell[: len(axes)] for cell in cells], dtype=np.float64).T
    return dict(zip(axes, columns, strict=True))


@dataclass
class Share:
    """A share of hits, one value per data set."""

    values: list[float]

    def __str__(self) -> str:
        mean, count = float(np.mean(self.values)), len(self.values)
        return f"{mean:.3f} ± {np.std(self.values, ddof=1) / np.sqrt(count):.3f}"


class Tally:
    def __init__(self) -> None:
        self.shares: dict[str, Share] = {}

    def add(self, name: str, hits: Array | bool) -> None:
        self.shares.setdefault(name, Share([])).values.append(float(np.mean(hits)))

    def __getitem__(self, name: str) -> Share:
        return self.shares[name]


def _inside(interval: Interval | tuple[float, float], value: Array | float) -> Array:
    low, high = interval
    return np.asarray((low <= value) & (value <= high))


def _table(header: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    head = list(header)
    lines = [head, ["---"] * len(head), *([str(cell) for cell in row] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def independent(n_sets: int, n_refits: int) -> str:
    sections = []
    for design in designs():
        tally, begun = Tally(), time.perf_counter()
        for seed in range(n_sets):
            _one_independent(design, seed, n_refits, tally)
        sections.append(_independent_table(design, tally, time.perf_counter() - begun))
    return "\n\n".join(sections)


def _one_independent(design: Design, seed: int, n_refits: int, tally: Tally) -> None:
    rng = np.random.default_rng(seed)
    fit = design.fit(0.01 * rng.standard_normal(len(design.points["n"])))
    tally.add("wrong", _is_wrong(fit, design))
    refits = bootstrap(fit, n_refits, seed)
    by_bootstrap = refits.parameter_intervals()
    by_t = t_intervals(fit, fit.covariance, fit.degrees_of_freedom)
    for name, value in design.truth.parameters.items():
        tally.add(f"bootstrap {name}", _inside(by_bootstrap[name], value))
        tally.add(f"t {name}", _inside(by_t[name], value))
    for where, points in (("seen", design.points), ("2x n", design.beyond)):
        truth = design.truth.predict(points)
        new = truth * np.exp(0.01 * rng.standard_normal(len(truth)))
        tally.add(f"bootstrap law, {where}", _inside(refits.band(points), truth))
        tally.add(f"t law, {where}", _inside(prediction_interval(fit, points, noise=False), truth))
        tally.add(f"bootstrap run, {where}", _inside(refits.prediction_interval(points), new))
        tally.add(f"t run, {where}", _inside(prediction_interval(fit, points), new))


def _is_wrong(fit: Fit, design: Design) -> bool:
    """Does a fit begun at the truth end lower?"""
    law = design.law
    at_truth = np.linalg.solve(law.form.uncenter(fit.center), design.truth.coefficients())
    found = solve(fit.design(fit.table.points), fit.table.log_loss, at_truth)
    return fit.half_sum_of_squares > found.cost * (1 + _WRONG)


def _independent_table(design: Design, tally: Tally, seconds: float) -> str:
    targets = [*design.truth.parameters, *(f"{w}, {x}" for w in _WHAT for x in _WHERE)]
    rows = [(name, tally[f"bootstrap {name}"], tally[f"t {name}"]) for name in targets]
    n_sets, wrong = len(tally["wrong"].values), int(sum(tally["wrong"].values))
    return (
        f"**{design.name}** ({len(design.points['n'])} runs): {wrong} wrong optima in {n_sets} "
        f"data sets ({seconds:.0f} s)\n\n{_table(('interval of', 'bootstrap', 't x se'), rows)}"
    )


_WHAT, _WHERE = ("law", "run"), ("seen", "2x n")


def shared(n_sets: int, n_refits: int) -> str:
    rows = []
    for design in (designs()[0], designs()[2], designs()[3]):
        tally = Tally()
        for seed in range(n_sets):
            _one_shared(design, seed, n_refits, tally)
        for method in _METHODS:
            names = [f"{method} {what}" for what in ("parameters", "seen", "2x n")]
            rows.append((design.name, method, *(tally[name] for name in names)))
    return _table(("design", "intervals", "parameters", "law, seen", "law, 2x n"), rows)


_METHODS = (
    *("plain bootstrap", "plain t", "bootstrap of clusters"),
    *("sandwich CR1, t", "sandwich CR3, t"),
)


def _one_shared(design: Design, seed: int, n_refits: int, tally: Tally) -> None:
    rng = np.random.default_rng(seed)
    by_n = np.unique(design.points["n"], return_inverse=True)[1]
    own = 0.005 * rng.standard_normal(len(by_n))
    fit = design.fit(own + 0.01 * rng.standard_normal(by_n.max() + 1)[by_n])
    ids = cluster_ids(fit.table, "n")
    cr1, cr3 = (Clusters.of(fit, "n", c) for c in ("CR1", "CR3"))
    plain, drawn = bootstrap(fit, n_refits, seed), bootstrap(fit, n_refits, seed, ids)

    def by_t(doubt: Doubt) -> Callable[[Points], Interval]:
        return lambda points: prediction_interval(fit, points, noise=False, doubt=doubt)

    bands: dict[str, Callable[[Points], Interval]] = {
        "plain bootstrap": plain.band,
        "plain t": by_t(plain_doubt(fit)),
        "bootstrap of clusters": drawn.band,
        "sandwich CR1, t": by_t(cr1.doubt),
        "sandwich CR3, t": by_t(cr3.doubt),
    }
    parameters = {
        "plain bootstrap": plain.parameter_intervals(),
        "plain t": t_intervals(fit, fit.covariance, fit.degrees_of_freedom),
        "bootstrap of clusters": drawn.parameter_intervals(),
        "sandwich CR1, t": cr1.intervals(fit),
        "sandwich CR3, t": cr3.intervals(fit),
    }
    for method in _METHODS:
        truth = design.truth.parameters
        hits = [_inside(parameters[method][name], value) for name, value in truth.items()]
        tally.add(f"{method} parameters", np.array(hits))
        for where, points in (("seen", design.points), ("2x n", design.beyond)):
            inside = _inside(bands[method](points), design.truth.predict(points))
            tally.add(f"{method} {where}", inside)


def outliers(n_sets: int, n_refits: int) -> str:
    rows = []
    for design in (designs()[0], designs()[2], designs()[3]):
        errors: dict[tuple[str, str], list[Array]] = {}
        tally = Tally()
        for seed in range(n_sets):
            _one_with_outliers(design, seed, n_refits, errors, tally)
        for where in _WHERE:
            for method in ("least_squares", "huber"):
                found = np.array(errors[method, where])
                bias = np.sqrt(np.mean(found.mean(axis=0) ** 2))
                rms = np.sqrt(np.mean(found**2))
                covered = tally[f"{method} {where}"]
                rows.append((design.name, where, method, f"{bias:.2%}", f"{rms:.2%}", covered))
    header = ("design", "points", "fit", "bias", "rms error", "95% interval of the law covers")
    return _table(header, rows)


def _one_with_outliers(
    design: Design,
    seed: int,
    n_refits: int,
    errors: dict[tuple[str, str], list[Array]],
    tally: Tally,
) -> None:
    rng = np.random.default_rng(seed)
    n_runs = len(design.points["n"])
    noise = 0.01 * rng.standard_normal(n_runs)
    far = rng.choice(n_runs, max(1, round(0.05 * n_runs)), replace=False)
    noise[far] += np.log1p(rng.uniform(0.2, 0.5, len(far)))
    for method in ("least_squares", "huber"):
        fit = design.fit(noise, method)
        refits = bootstrap(fit, n_refits, seed)
        for where, points in (("seen", design.points), ("2x n", design.beyond)):
            truth = design.truth.log_predict(points)
            errors.setdefault((method, where), []).append(fit.log_predict(points) - truth)
            tally.add(f"{method} {where}", _inside(refits.band(points), np.exp(truth)))


PARTS = {"independent": independent, "shared": shared, "outliers": outliers}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="markdown file to write")
    parser.add_argument("--sets", type=int, default=200, help="data sets per design")
    parser.add_argument("--refits", type=int, default=400)
    parser.add_argument("--part", choices=sorted(PARTS), help="default: all three")
    options = parser.parse_args()
    chosen = [options.part] if options.part else list(PARTS)
    sections = []
    for name in chosen:
        sections.append(f"### {name}\n\n{PARTS[name](options.sets, options.refits)}\n")
        options.out.write_text("\n".join(sections))


if __name__ == "__main__":
    main()
