"""A whole comparison at equal L0: arms, n and L0s of a sweep, as values, table and JSON."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from analysis.counts import short_count
from analysis.errors import TableError
from analysis.laws.forms import Array
from analysis.sparsity.equal import AtL0, Outside, interval, readings, to_reference
from analysis.sparsity.power import PowerOfN, power_of_n
from analysis.sparsity.series import ARCHITECTURE, TUNED, Chosen, series_of
from analysis.uncertainty.seeds import Bounds, Difference

REFERENCE = "topk"
_MOST_TARGETS = 3
_WIDE = 4.0  # a factor between neighbouring L0s, beyond which a curve between them is a guess


@dataclass(frozen=True)
class AtOneL0:
    l0: float
    found: list[AtL0]
    outside: list[Outside]
    powers: list[PowerOfN]

    def interval(self, at: AtL0) -> Bounds | None:
        return interval(at, self.found)

    def difference(self, at: AtL0, reference: str) -> Difference | None:
        """None for the reference itself, and where it was not measured around this L0."""
        base = next(
            (
                other
                for other in self.found
                if (other.place.arm, other.place.n_latents) == (reference, at.place.n_latents)
            ),
            None,
        )
        if base is None or base.place.arm == at.place.arm:
            return None
        return to_reference(at, base, self.found)


@dataclass(frozen=True)
class Comparison:
    chosen: Chosen
    reference: str  # the arm that others are compared with
    targets: list[AtOneL0]

    def cautions(self) -> Iterator[str]:
        """What a reader must know of these numbers."""
        yield from _left_out(self.chosen)
        found = [at for target in self.targets for at in target.found]
        if any(len(at.by_seed) < 2 for at in found):
            yield (
                "Values with one seed have an interval only where other n of the same arm have "
                "several: the scatter of runs is not known otherwise."
            )
        wide = [at for at in found if at.above / at.below > _WIDE]
        if wide:
            yield (
                f"{len(wide)} of {len(found)} values are read between L0s more than a factor "
                f"{_WIDE:g} apart; train settings between them."
            )
        moved = max((at.moved for at in found), default=0.0)
        if moved > 0.0:
            yield (
                "Loss rises with L0 in places; such points were pooled, which moved them by up to "
                f"{np.expm1(moved):.2%}."
            )
        tried = sorted({at.tried for at in found})
        if tried and tried[-1] > 1:
            counts = " to ".join(map(str, tried if len(tried) < 3 else (tried[0], tried[-1])))
            yield (
                f"Each arm is at the best of the learning rates and batches tried for it at each "
                f"n ({counts} around the L0): arms with more of them are favored by chance."
            )


def _left_out(chosen: Chosen) -> Iterator[str]:
    if chosen.left_out:
        yield (
            f"Compared are the runs of {short_count(chosen.budget)} tokens; {chosen.left_out} runs "
            "of other budgets are left out (--tokens chooses)."
        )


def compare(
    frame: pd.DataFrame,
    *,
    by: Sequence[str] = (ARCHITECTURE,),
    l0s: Sequence[float] | None = None,
    reference: str | None = None,
    budget: float | None = None,
) -> Comparison:
    """Read every arm at each L0.

    Args:
        frame: columns as in `load_runs`.
        by: the columns compared.
        l0s: None: up to three L0s that most arms were measured around.
        reference: an arm; None: topk, or else the arm with most runs.
        budget: as in `series_of`.

    Raises:
        TableError: as `series_of`; the reference is no arm; an L0 around which no arm was measured.
    """
    chosen = series_of(frame, by, budget)
    base = _reference(chosen, reference)
    targets = [_at(chosen, l0) for l0 in (default_l0s(chosen) if l0s is None else l0s)]
    for target in targets:
        if not target.found:
            raise _nowhere(target)
    return Comparison(chosen, base, targets)


def _at(chosen: Chosen, l0: float) -> AtOneL0:
    found, outside = readings(chosen, l0)
    powers = [law for arm in chosen.arms if (law := power_of_n(found, arm)) is not None]
    return AtOneL0(l0, found, outside, powers)


def default_l0s(chosen: Chosen) -> list[float]:
    """Powers of two that most arms and n were measured around, at most three, ascending; the
    middle of the measured L0s where there is no such power."""
    l0s = np.concatenate([series.l0 for series in chosen.series])
    counts = {l0: len(readings(chosen, l0)[0]) for l0 in powers_of_two(l0s)}
    most = max(counts.values(), default=0)
    best = [l0 for l0, count in counts.items() if count == most > 0]
    if not best:
        return [float(f"{_middle(chosen.series[0].l0):.3g}")]
    places = np.unique(np.linspace(0, len(best) - 1, _MOST_TARGETS).round().astype(int))
    return [best[place] for place in places]


def powers_of_two(l0s: Array) -> list[float]:
    """Those from the smallest to the largest of `l0s`, ascending."""
    low, high = np.log2(l0s.min()), np.log2(l0s.max())
    return (2.0 ** np.arange(np.ceil(low), np.floor(high) + 1)).tolist()


def _middle(l0: Array) -> float:
    return float(l0[len(l0) // 2])


def _reference(chosen: Chosen, asked: str | None) -> str:
    arms = chosen.arms
    if asked is not None and asked not in arms:
        raise TableError(f"--reference {asked} is none of the kinds compared: {'; '.join(arms)}.")
    if asked is not None:
        return asked
    counts = {arm: sum(len(s.l0) for s in chosen.series if s.place.arm == arm) for arm in arms}
    first = next((arm for arm in arms if arm.split(", ")[0] == REFERENCE), None)
    return first or max(arms, key=lambda arm: counts[arm])


def _nowhere(target: AtOneL0) -> TableError:
    measured = "; ".join(
        f"{o.place.arm} at n = {o.place.n_latents}: {o.low:.3g} to {o.high:.3g}"
        for o in target.outside
    )
    return TableError(
        f"--l0 {target.l0:g} lies outside the measured L0s of every arm, and nothing is "
        f"extrapolated ({measured}). Choose an L0 within, or train runs with other penalties."
    )


def comparison_json(found: Comparison) -> dict[str, Any]:
    """All of it; a null interval says that there are too few seeds for one."""
    return {
        "by": list(found.chosen.by),
        "reference": found.reference,
        "tokens": found.chosen.budget,
        "at": [_target_json(target, found.reference) for target in found.targets],
        "cautions": list(found.cautions()),
    }


def _target_json(target: AtOneL0, reference: str) -> dict[str, Any]:
    return {
        "l0": target.l0,
        "losses": [_loss_json(target, at, reference) for at in target.found],
        "outside": [
            {"arm": o.place.arm, "n_latents": o.place.n_latents, "measured_l0": [o.low, o.high]}
            for o in target.outside
        ],
        "powers": [
            {"arm": law.arm, "A": law.A, "b": law.b, "b_ci95": list(law.b_interval)}
            | {"n": law.sizes.tolist(), "rms_log_residual": law.rms_log_residual}
            for law in target.powers
        ],
    }


def _loss_json(target: AtOneL0, at: AtL0, reference: str) -> dict[str, Any]:
    ends, apart = target.interval(at), target.difference(at, reference)
    over = apart.share_interval if apart else None
    tuned = zip(TUNED, at.place.tuned, strict=True)
    return {
        **{"arm": at.place.arm, "n_latents": at.place.n_latents, "loss": at.loss},
        "ci95": list(ends) if ends else None,
        "over_reference": apart.share if apart else None,
        "over_reference_ci95": list(over) if over else None,
        **{"seeds": len(at.by_seed), "between_l0": [at.below, at.above]},
        "interpolation_doubt": at.doubt,
        **{name: value for name, value in tuned},
        "tuned_of": at.tried,
    }
