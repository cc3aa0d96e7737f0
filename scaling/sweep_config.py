"""Keys of a sweep, and the token budgets that a width alone settles: `${ladder:}`, `${d_star:}`.

A sweep is a product of lists (hydra.sweeper.params), a list of cells of its own (`sweep.points`),
or both: every cell at every point of the product. What depends on the activations too, a FLOP
budget, is settled after they are known (scaling/sweep/tokens.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from scaling.autoencoder_config import ARCHITECTURES
from scaling.errors import UserError


@dataclass(kw_only=True)
class SweepPoint:
    """One cell of `sweep.points`; what is null stays as the rest of the config says."""

    n_latents: int = MISSING
    autoencoder: str | None = None
    """Architecture, by its name in autoencoder=NAME; keys that both have stay as they were set."""
    k: int | None = None
    """Of an architecture that fixes it; `penalty` of one that pays for activity."""
    penalty: float | None = None
    tokens: int | None = None
    seed: int | None = None
    lr_scale: float | None = None
    batch_tokens: int | None = None


KEYS_OF_A_POINT = {
    "n_latents": "autoencoder.n_latents",
    "k": "autoencoder.k",
    "penalty": "autoencoder.penalty",
    "tokens": "train.tokens",
    "seed": "train.seed",
    "lr_scale": "train.lr_scale",
    "batch_tokens": "train.batch_tokens",
}
"""Where each field of a cell goes."""
STEEPEST = 4.0
"""Of the exponent of D*, either way."""
MOST_TOKENS = 2.0**62


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
    """Cells to run instead of a product, each {n_latents, k (or penalty)[, autoencoder, tokens,
    seed, lr_scale, batch_tokens]}; of other lists in the command, each of their values runs all
    cells."""
    where: str | None = None
    """Keep only grid points for which this holds, e.g. "k <= n_latents / 16". Names: n_latents,
    k (or penalty), tokens, batch_tokens, lr_scale, seed, rung, share."""
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
    without = composed.copy()  # once: a copy of all cells for each would take their square
    without.sweep.points = []
    for number, cell in enumerate(composed.sweep.points, start=1):
        at_cell = without.copy()
        if (architecture := _of_cell(cell, "autoencoder", number)) is not None:
            at_cell.autoencoder = _of_architecture(at_cell.autoencoder, str(architecture), number)
        for name, key in KEYS_OF_A_POINT.items():
            if (value := _of_cell(cell, name, number)) is not None:
                _check_key(at_cell, key, name, value, number)
                OmegaConf.update(at_cell, key, value)
        yield at_cell


def _of_cell(cell: DictConfig, name: str, number: int) -> float | str | None:
    if OmegaConf.is_missing(cell, name) or (name == "k" and cell.k is cell.penalty is None):
        raise UserError(
            f"sweep.points: cell {number} has no {name}. Give each cell n_latents and k (or "
            "penalty, where sparsity is an outcome)."
        )
    try:
        value = cell[name]
    except OmegaConfBaseException as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"sweep.points: cell {number} has no usable {name}: {reason}. Give it a number."
        ) from error
    if name == "tokens" and value is not None and value < 1:
        raise UserError(
            f"sweep.points: cell {number} has tokens={value}. Set them to 1 or more, or leave them "
            "out for what train.tokens or train.flops says."
        )
    return value


def _check_key(at_cell: DictConfig, key: str, name: str, value: float | str, number: int) -> None:
    """A cell says k to an architecture that has it, and penalty to one that pays."""
    group, _, field_name = key.partition(".")
    if field_name not in list(at_cell[group]):  # "in" alone does not see a key without a value
        schema = OmegaConf.get_type(at_cell[group])
        architecture = next((n for n, node in ARCHITECTURES.items() if node is schema), "")
        raise UserError(
            f"sweep.points: cell {number} has {name}={value}, and autoencoder={architecture} has "
            f"no {name}. Give a cell k or penalty, whichever its architecture has."
        )


def _of_architecture(present: DictConfig, name: str, number: int) -> DictConfig:
    """The keys of that architecture, with the values that were set on the present one's."""
    if name not in ARCHITECTURES:
        raise UserError(
            f"sweep.points: cell {number} has autoencoder={name}, which does not exist. Choose "
            f"among {', '.join(ARCHITECTURES)}."
        )
    schema = OmegaConf.get_type(present)
    wanted = OmegaConf.structured(ARCHITECTURES[name])
    if schema is ARCHITECTURES[name]:
        return present
    usual = OmegaConf.structured(schema)
    for key in wanted:
        if key in present and not OmegaConf.is_missing(present, key):
            value = present[key]
            if OmegaConf.is_missing(usual, key) or value != usual[key]:
                wanted[key] = value
    return wanted


def _from_ladder(*, _root_: DictConfig) -> int:
    n_latents, sweep = _root_.autoencoder.n_latents, _root_.sweep
    budgets = sweep.ladder.get(n_latents, [])
    if not 0 <= sweep.rung < len(budgets):
        raise ValueError(
            f"sweep.ladder has no rung {sweep.rung} for autoencoder.n_latents={n_latents}"
        )
    return budgets[sweep.rung]


def _from_d_star(*, _root_: DictConfig) -> int:
    """share D*(n) in whole batches; less than one batch stays as it is, and is refused by name
    where the run is wanted (`sweep.where` may leave it out)."""
    sweep, law = _root_.sweep, _root_.sweep.d_star
    n_latents, batch = _root_.autoencoder.n_latents, _root_.train.batch_tokens
    for key, value in (("d_star.D0", law.D0), ("d_star.n0", law.n0), ("share", sweep.share)):
        if value is None or not 0 < value < float("inf"):
            raise ValueError(f"sweep.{key}={value} gives no token budget: set it above 0")
    if not abs(law.s) <= STEEPEST:
        raise ValueError(f"sweep.d_star.s={law.s} gives no token budget: set it to -4..4")
    for key, value in (("autoencoder.n_latents", n_latents), ("train.batch_tokens", batch)):
        if value < 1:
            raise ValueError(f"{key}={value} gives no token budget: set it to 1 or more")
    tokens = sweep.share * law.D0 * (n_latents / law.n0) ** law.s
    if not tokens < MOST_TOKENS:
        raise ValueError(
            f"sweep.share={sweep.share} of sweep.d_star.D0={law.D0} at n_latents={n_latents} is "
            f"{tokens:g} tokens, which no run can train: lower sweep.d_star.D0 or s, or raise n0"
        )
    return round(tokens / batch) * batch if tokens >= batch else max(1, int(tokens))
