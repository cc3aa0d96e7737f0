"""What evaluations found: how each metric moves with n and k, and where a law holds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
from matplotlib.figure import Figure

from analysis.planning.text import aligned
from analysis.quality.found import AXES, MetricFound, QualityFound
from analysis.quality.law import Tried
from analysis.quality.trend import Trend
from analysis.quality.values import OTHER, Axis, Cell, Change, Values
from analysis.report import page
from analysis.uncertainty.seeds import Bounds
from scaling.runs.evaluation_columns import OWN

METRIC_HEADER = ("metric", "what it is", "values", "± of one run", "baselines")
TREND_HEADER = ("metric", "per doubling of {}", "95%", "95% of the draw", "best inside", "steps")
ENDS_HEADER = ("metric", "from", "to", "change, with the 95% interval of seeds")
LAW_HEADER = ("metric", "law", "verdict", "held out, rms", "beta_n", "95%", "beta_k", "95%")
_CAPTION = (
    "Metrics against {}: every run, lines through the means over seeds; dashed, a law that "
    "stands its tests; dotted, baselines that are near enough. "
    "Arrows point to the better."
)
ABOUT_DRAW = (
    "± of one run: its standard error, of the documents, vectors, latents, tokens or tasks drawn "
    "(median over runs; none: not known, or nothing was drawn). All runs have the same draw but of "
    "latents, so most of it moves their level together. Baselines are measured on that draw too."
)
ABOUT = (
    "Per doubling: a straight line over the means of cells, with a level for each value of the "
    "other axis; its interval holds what the line misses and the scatter of seeds, and that of the "
    "draw what other documents, tasks, tokens or vectors would have given. Steps are to "
    "the next cell, and count as better or worse where they are beyond the scatter of seeds (95%, "
    "pooled over cells, each by itself: of many, one in twenty is by chance). A metric turns over "
    "where its best cell is inside, and better than both ends beyond that scatter."
)


def quality(found: QualityFound, figures: Mapping[str, Figure | None]) -> Iterator[str]:
    """HTML of the section; nothing where no run was evaluated."""
    if found.is_empty:
        return
    yield page.heading("Quality beyond reconstruction")
    yield from (page.paragraph(f"Not shown: {why}", "warn") for why in _refusals(found))
    if not found.metrics:
        return
    yield page.paragraph(f"Evaluations of {found.words}. {ABOUT}{found.left_out}{_dead(found)}")
    yield page.paragraph(ABOUT_DRAW)
    yield page.table(METRIC_HEADER, metric_rows(found))
    yield page.folded("Values: mean over seeds, and their standard deviation", values_table(found))
    for axis in AXES:
        if rows := trend_rows(found, axis):
            yield page.heading(f"Along {axis}", 3)
            yield page.figure(figures[f"quality_{axis}"], _CAPTION.format(axis))
            yield page.table(_trend_header(axis), rows)
            yield page.folded(
                "From the first to the last", page.table(ENDS_HEADER, ends_rows(found, axis))
            )
    yield page.heading("Laws of n and k", 3)
    yield page.paragraph(
        "Tried for metrics that fall as they get better: a plane in logarithms with a product, "
        "then with a floor. Claimed where no test speaks against it: an effect of n is seen, "
        "beyond both intervals; no "
        "lack of fit against the scatter of seeds; the runs of the largest n, predicted without "
        "them, lie in their intervals, and nearer to the law than to the values of the n before."
    )
    yield page.table(LAW_HEADER, law_rows(found))


def values_table(found: QualityFound) -> str:
    """HTML: a row per metric, a column per cell."""
    cells = sorted({cell for one in found.metrics for cell in one.values.of})
    header = ("metric", *(f"n = {cell.n:g}, k = {cell.k:g}" for cell in cells))
    rows = [
        (one.values.quality.column, *(_value(one.values, cell) for cell in cells))
        for one in found.metrics
    ]
    return page.table(header, rows)


def _value(values: Values, cell: Cell) -> str:
    seeds = values.of.get(cell)
    if seeds is None:
        return "-"
    scatter = f" ± {seeds.std(ddof=1):.2g}" if len(seeds) > 1 else ""
    return f"{seeds.mean():.4g}{scatter}"


def lines(found: QualityFound) -> Iterator[str]:
    """The tables for a terminal."""
    yield from (f"caution: {why}" for why in _refusals(found))
    if not found.metrics:
        return
    yield f"{found.words}.{found.left_out}{_dead(found)}"
    yield "\n" + aligned(METRIC_HEADER, metric_rows(found))
    for axis in AXES:
        if rows := trend_rows(found, axis):
            yield "\n" + aligned(_trend_header(axis), rows)
    if rows := law_rows(found):
        yield "\n" + aligned(LAW_HEADER, rows)


def _refusals(found: QualityFound) -> list[str]:
    return list(dict.fromkeys(found.refusals.values()))


def _dead(found: QualityFound) -> str:
    if not found.n_dead:
        return ""
    return f" {found.n_dead} runs of mostly dead latents are shown, and no law is fitted to them."


def _trend_header(axis: Axis) -> tuple[str, ...]:
    return tuple(cell.format(axis) for cell in TREND_HEADER)


def metric_rows(found: QualityFound) -> list[tuple[str, ...]]:
    """A row per metric: what was drawn to measure it, and what it is to be compared with."""
    return [_metric_row(one.values) for one in found.metrics]


def _metric_row(values: Values) -> tuple[str, ...]:
    quality, drawn = values.quality, values.beside
    of_cells = [float(seeds.mean()) for seeds in values.of.values()]
    error = drawn.standard_error
    about = "none" if error is None else f"{error:.2g} ({quality.drawn})"
    baselines = [f"{name} {_span(*drawn.span(name))}" for name in drawn.baselines]
    of_values = _span(min(of_cells), max(of_cells))
    return (quality.column, quality.title, of_values, about, ", ".join(baselines))


def _span(least: float, largest: float) -> str:
    low, high = f"{least:.3g}", f"{largest:.3g}"
    return low if low == high else f"{low} to {high}"


def trend_rows(found: QualityFound, axis: Axis) -> list[tuple[str, ...]]:
    """A row per metric that has cells along `axis`."""
    return [_trend_row(one, one.trends[axis]) for one in found.metrics if axis in one.trends]


def _trend_row(found: MetricFound, trend: Trend) -> tuple[str, ...]:
    values = found.values
    steps = ", ".join(f"{count} {word}" for word, count in trend.counts.most_common())
    other = OTHER[trend.axis]
    turns = [f"{trend.axis} = {t.best:g} at {other} = {t.level:g}" for t in trend.turns]
    scatter = "" if values.noise is not None else " (scatter not known)"
    return (
        *(values.quality.column, _amount(values, trend.slope)),
        *(_interval(values, trend.interval), _of_draw(values, trend)),
        *("; ".join(turns), f"{steps}{scatter}"),
    )


def _of_draw(values: Values, trend: Trend) -> str:
    if trend.draw is None:
        return "none" if values.quality.drawn in ("", *OWN) else "not known"
    return f"{_interval(values, trend.draw)} ({values.quality.drawn})"


def ends_rows(found: QualityFound, axis: Axis) -> list[tuple[str, ...]]:
    """A row per metric and level of the other axis."""
    return [
        _ends_row(one.values, axis, level, change)
        for one in found.metrics
        if axis in one.trends
        for level, change in one.trends[axis].ends
    ]


def _ends_row(values: Values, axis: Axis, level: float, change: Change) -> tuple[str, ...]:
    start, end = (
        f"{values.of[cell].mean():.3g} at {axis} = {getattr(cell, axis):g}"
        for cell in (change.start, change.end)
    )
    apart = f"{_amount(values, change.value)} ({_interval(values, change.interval)})"
    return (f"{values.quality.column}, {OTHER[axis]} = {level:g}", start, end, apart)


def law_rows(found: QualityFound) -> list[tuple[str, ...]]:
    """A row per law tried; a metric that takes none has none."""
    return [
        (one.values.quality.column, tried.title, *_law_cells(tried))
        for one in found.metrics
        for tried in one.laws
    ]


def _law_cells(tried: Tried) -> tuple[str, ...]:
    verdict = "stands its tests" if tried.holds else f"no law: {tried.objection}"
    if tried.fitted is None:
        return (verdict, *[""] * 5)
    parameters, ci95 = tried.fitted.law.parameters, tried.fitted.ci95
    cells = [
        text
        for name in ("beta_n", "beta_k")
        for text in (f"{parameters[name]:.3g}", "{:.3g} to {:.3g}".format(*ci95[name]))
    ]
    held = tried.held_out
    errors = "" if held is None else f"{held.rms_log:.1%}; n before {tried.carried:.1%}"
    return (verdict, errors, *cells)


def _amount(values: Values, change: float) -> str:
    return f"{np.expm1(change):+.1%}" if values.relative else f"{change:+.3g}"


def _interval(values: Values, interval: Bounds | None) -> str:
    if interval is None:
        return "not known"
    return " to ".join(_amount(values, end) for end in interval)
