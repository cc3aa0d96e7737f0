"""Keys of a sweep, and the token budgets that a width alone settles: `${ladder:}`, `${d_star:}`.

A sweep is a product of lists (hydra.sweeper.params), a list of cells of its own (`sweep.points`),
or both: every cell at every point of the product. What depends on the activations too, a FLOP
budget, is settled after they are known (scaling/sweep/tokens.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from omegaconf import MISSING, DictConfig, OmegaConf

from scaling.errors import UserError


@dataclass(kw_only=True)
class SweepPoint:
    """One cell of `sweep.points`; what is null stays as the rest of the config says."""

    n_latents: int = MISSING
    k: int = MISSING
    tokens: int | None = None
    seed: int | None = None
    lr_scale: float | None = None
    batch_tokens: int | None = None


KEYS_OF_A_POINT = {
    "n_latents": "autoencoder.n_latents",
    "k": "autoencoder.k",
    "tokens": "train.tokens",
    "seed": "train.seed",
    "lr_scale": "train.lr_scale",
    "batch_tokens": "train.batch_tokens",
}
"""Where each field of a cell goes."""


@dataclass(kw_only=True)
class DStarConfig:
    """Tokens to convergence as a law of the width: D* = D0 (n / n0)^s. Fitted: d_star, l_nkd."""

    D0: float | None = None
    """Tokens at n0 latents."""
    s: float = 0.6
    """The paper's exponent for GPT-2 small; 0.65 for its GPT-4 runs."""
    n0: float = 1024.0


@dataclass(kw_only=True)
class SweepConfig:
    points: list[SweepPoint] = field(default_factory=list)
    """Cells to run instead of a product, each {n_latents, k[, tokens, seed, lr_scale,
    batch_tokens]}; of other lists in the command, each of their values runs all cells."""
    where: str | None = None
    """Keep only grid points for which this holds, e.g. "k <= n_latents / 16". Names: n_latents,
    k, tokens, batch_tokens, lr_scale, seed, rung, share."""
    rung: int = 0
    """Index into `ladder`; sweep over it to give each n_latents token budgets of its own."""
    ladder: dict[int, list[int]] = field(default_factory=dict)
    """Token budgets by n_latents, used as train.tokens=${ladder:}."""
    share: float = 1.0
    """Of D*(n), for train.tokens=${d_star:}; sweep over it for a ladder that grows with n."""
    d_star: DStarConfig = field(default_factory=DStarConfig)
    max_hours: float | None = None
    """Refuse a sweep estimated to take longer."""


def register_resolvers() -> None:
    """Make `${ladder:}` and `${d_star:}` known to OmegaConf."""
    OmegaConf.register_new_resolver("ladder", _from_ladder, replace=True)
    OmegaConf.register_new_resolver("d_star", _from_d_star, replace=True)


def with_points(composed: DictConfig) -> Iterator[DictConfig]:
    """The composed config itself, or one for each cell of its `sweep.points`."""
    if not composed.sweep.points:
        yield composed
        return
    for number, cell in enumerate(composed.sweep.points, start=1):
        at_cell = composed.copy()
        at_cell.sweep.points = []  # it is one of them now
        for name, key in KEYS_OF_A_POINT.items():
            if OmegaConf.is_missing(cell, name):
                raise UserError(
                    f"sweep.points: cell {number} has no {name}. Give each cell n_latents and k."
                )
            if cell[name] is not None:
                OmegaConf.update(at_cell, key, cell[name])
        yield at_cell


def _from_ladder(*, _root_: DictConfig) -> int:
    n_latents, sweep = _root_.autoencoder.n_latents, _root_.sweep
    budgets = sweep.ladder.get(n_latents, [])
    if not 0 <= sweep.rung < len(budgets):
        raise ValueError(
            f"sweep.ladder has no rung {sweep.rung} for autoencoder.n_latents={n_latents}"
        )
    return budgets[sweep.rung]


def _from_d_star(*, _root_: DictConfig) -> int:
    """share D*(n) in whole batches, one at least."""
    sweep, law, batch = _root_.sweep, _root_.sweep.d_star, _root_.train.batch_tokens
    for key, value in (("d_star.D0", law.D0), ("d_star.n0", law.n0), ("share", sweep.share)):
        if value is None or not 0 < value < float("inf"):
            raise ValueError(f"sweep.{key}={value} gives no token budget: set it above 0")
    tokens = sweep.share * law.D0 * (_root_.autoencoder.n_latents / law.n0) ** law.s
    return max(1, round(tokens / batch)) * batch
