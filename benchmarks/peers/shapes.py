"""What is measured: sizes of model and batch, by name. Imports nothing."""

from __future__ import annotations

from dataclasses import dataclass

LR = 1e-5
"""Adam's step size for all. The cost of a step does not depend on it; small, so that the weights,
and with them which latents are active, stay nearly the same for all during a measurement."""
AUX_COEF = 1 / 32
DEAD_AFTER_TOKENS = 10_000_000


@dataclass(frozen=True, kw_only=True)
class Shape:
    """One model and one batch size."""

    name: str
    d_model: int
    n_latents: int
    k: int
    batch_tokens: int
    dead_fraction: float = 0.0
    steps_per_turn: int = 1
    """Steps that a contender does before it is the next one's turn. Steps of a few milliseconds
    come in several, of which the median counts: the first finds the others' data in the cache."""

    @property
    def n_dead(self) -> int:
        return round(self.dead_fraction * self.n_latents)

    @property
    def k_aux(self) -> int:
        """Half of d_model, as Gao et al. (2024, appendix B.1) and all of the packages choose."""
        return self.d_model // 2


def _main(n_latents: int, name: str = "main", dead_fraction: float = 0.0) -> Shape:
    return Shape(
        name=f"{name}-n{n_latents}",
        d_model=768,
        n_latents=n_latents,
        k=32,
        batch_tokens=4096,
        dead_fraction=dead_fraction,
    )


def _small(n_latents: int) -> Shape:
    return Shape(
        name=f"small-n{n_latents}",
        d_model=576,
        n_latents=n_latents,
        k=16,
        batch_tokens=256,
        steps_per_turn=7,
    )


def _quick(n_latents: int, dead_fraction: float) -> Shape:
    return Shape(
        name=f"quick-n{n_latents}",
        d_model=64,
        n_latents=n_latents,
        k=8,
        batch_tokens=128,
        dead_fraction=dead_fraction,
        steps_per_turn=3,
    )


SHAPES = [
    *(_main(n) for n in (4096, 16384, 32768)),
    *(_main(n, "dead10", 0.1) for n in (4096, 16384, 32768)),
    *(_small(n) for n in (1024, 4096)),
    *(_quick(n, dead) for n, dead in ((256, 0.0), (512, 0.1))),
]


def select(names: list[str]) -> list[Shape]:
    """Shapes by their name, or all whose name begins with `name-`."""
    chosen = []
    for name in names:
        found = [s for s in SHAPES if s.name == name or s.name.startswith(f"{name}-")]
        if not found:
            raise SystemExit(f"shape {name} is not one of {', '.join(s.name for s in SHAPES)}")
        chosen += found
    return chosen
