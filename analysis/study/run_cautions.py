"""What a reader must know of the runs themselves before using any law of them (docs/laws.md)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import numpy as np
import pandas as pd

from analysis.records.columns import numbers
from analysis.records.exclusions import DEATH_MEASURES, MOST_DEAD
from scaling.budget import flops_per_token_dense

# A held-out loss this far above the training loss moves a law by more than runs scatter.
_MOST_GAP = 0.02
_MUCH_DEAD = 0.25  # of the latents
_SAME_FLOPS = 0.01


def run_cautions(frame: pd.DataFrame) -> dict[str, str]:
    """Code -> message, of the runs in use; columns as in `records.load_runs`."""
    used = frame.loc[frame["excluded"] == ""]
    return {code: text for code, about in CHECKS.items() if (text := about(used))}


def _one_seed(used: pd.DataFrame) -> str:
    seeds = np.unique(numbers(used, "seed"))
    if len(seeds) > 1 or len(used) < 2:
        return ""
    return (
        f"all {len(used)} runs share one seed ({seeds[0]:g}): intervals hold neither the error of "
        "the seed nor errors shared by all runs of one n. They are of scatter about the law only."
    )


def _repeated_tokens(used: pd.DataFrame) -> str:
    epochs = numbers(used, "epochs")
    repeated = epochs[epochs > 1.0]
    if not len(repeated):
        return ""
    return (
        f"{len(repeated)} of {len(used)} runs saw their training data more than once "
        f"({repeated.min():.3g} to {repeated.max():.3g} epochs): D counts repeats, and a law in D "
        "is of this data set's size too. Predict for sweeps on as much data."
    )


def _train_heldout_gap(used: pd.DataFrame) -> str:
    gap = numbers(used, "normalized_mse") / numbers(used, "train_normalized_mse") - 1.0
    known = np.isfinite(gap)
    if not known.any() or gap[known].max() <= _MOST_GAP:
        return ""
    n = numbers(used, "n_latents")
    ends = [float(np.median(gap[known & (n == size)])) for size in _ends(n[known])]
    return (
        f"the held-out loss is above the training loss by {np.median(gap[known]):.1%} in the "
        f"median and {gap[known].max():.1%} at worst (median {ends[0]:.1%} at the smallest n, "
        f"{ends[1]:.1%} at the largest). The laws are of held-out loss: a gap that changes with n "
        "is part of their slope in n, and more data may change it."
    )


def _ends(values: np.ndarray) -> tuple[float, float]:
    return float(values.min()), float(values.max())


def _many_silent(used: pd.DataFrame) -> str:
    shares = [numbers(used, name) for name in DEATH_MEASURES]
    one_says = np.fmax(*shares) > MOST_DEAD
    if not one_says.any():
        return ""
    runs = ", ".join(map(str, used["run_id"][one_says]))
    return (
        f"{int(one_says.sum())} runs have {' or '.join(DEATH_MEASURES)} above {MOST_DEAD:.0%} but "
        f"not both, and are fitted: {runs}. A run is excluded where both say so."
    )


def _mixed_batches(used: pd.DataFrame) -> str:
    known = numbers(used, "batch_tokens")
    sizes = Counter(known[np.isfinite(known)].tolist())
    if len(sizes) < 2:
        return ""
    found = ", ".join(f"{size:g} ({count} runs)" for size, count in sorted(sizes.items()))
    return (
        f"the runs mix batch_tokens: {found}. At equal tokens a larger batch takes fewer steps, so "
        "part of what the law gives to n, k or D may be the batch's."
    )


def _dying_latents(used: pd.DataFrame) -> str:
    dead = numbers(used, "dead_fraction")
    many = dead > _MUCH_DEAD
    if not many.any():
        return ""
    place = int(np.nanargmax(dead))
    worst, sparsity = used.iloc[place], _sparsity(used.iloc[[place]])
    return (
        f"{int(many.sum())} of {len(used)} runs have more than {_MUCH_DEAD:.0%} dead latents "
        f"(worst {dead[many].max():.0%}: n = {worst['n_latents']:.0f}, {sparsity}, "
        f"{worst['tokens']:,.0f} tokens), by their own window: such a run is narrower than "
        "its n says, and the law takes that for the effect of n."
    )


def _sparsity(run: pd.DataFrame) -> str:
    """Of the only row."""
    (k,), (l0,) = numbers(run, "k"), numbers(run, "l0")
    return f"k = {k:.0f}" if np.isfinite(k) else f"L0 = {l0:.3g}"


def _other_flops(used: pd.DataFrame) -> str:
    n, d, tokens = (numbers(used, name) for name in ("n_latents", "d_model", "tokens"))
    ratio = numbers(used, "flops_dense") / (tokens * d * flops_per_token_dense(1, 1) * n)
    more = ratio > 1.0 + _SAME_FLOPS
    if not more.any():
        return ""
    return (
        f"{int(more.sum())} of {len(used)} runs took up to {ratio[more].max():.3g} times "
        "the FLOPs that budgets count (12 n d a token, or 2 n d + 8 k d): they decode twice. "
        "Frontiers and designs in FLOPs are of TopK's; a run of these costs more than they say."
    )


CHECKS: dict[str, Callable[[pd.DataFrame], str]] = {
    "one_seed": _one_seed,
    "repeated_tokens": _repeated_tokens,
    "train_heldout_gap": _train_heldout_gap,
    "mixed_batch_tokens": _mixed_batches,
    "many_silent_latents": _many_silent,
    "dying_latents": _dying_latents,
    "other_flops": _other_flops,
}
