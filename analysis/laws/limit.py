"""The part of a law that endless training leaves: what falls with size, and the floor under it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from analysis.laws.forms import CONSTANT, Monomial, Term

Named: TypeAlias = tuple[str, Monomial]  # a coefficient and the product of logs it multiplies

SYMBOLS = {"n": "n", "k": "k", "tokens": "D", "flops": "C", "subject": "S"}


@dataclass(frozen=True)
class Limit:
    """exp(falling) + exp(floor), each linear in products of logs; an empty floor is none."""

    falling: tuple[Named, ...]
    floor: tuple[Named, ...]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(name for name, _ in (*self.falling, *self.floor))

    @property
    def terms(self) -> tuple[Term, ...]:
        parts = (self.falling, self.floor)
        return tuple(tuple(monomial for _, monomial in part) for part in parts if part)

    @property
    def floor_column(self) -> int | None:
        """Which coefficient is the log of the floor where the logs are zero."""
        return len(self.falling) if self.floor else None

    @property
    def formula(self) -> str:
        parts = (self.falling, self.floor)
        return " + ".join(f"exp({' + '.join(map(_text, part))})" for part in parts if part)

    def without(self, *names: str) -> Limit:
        """The same limit with some coefficients held at zero; without both of the floor's, none."""
        falling, floor = (
            tuple(named for named in part if named[0] not in names)
            for part in (self.falling, self.floor)
        )
        return Limit(falling, floor)


def _text(named: Named) -> str:
    name, monomial = named
    return " ".join([name, *(f"ln {SYMBOLS[axis]}" for axis in monomial)])


def latents_and(axis: str) -> Limit:
    """The joint law of Gao et al. 2024 in latents n and one more axis, theirs being k."""
    slope = f"beta_{SYMBOLS[axis].lower()}"
    return Limit(
        falling=(
            *(("alpha", CONSTANT), (slope, (axis,))),
            *(("beta_n", ("n",)), ("gamma", (axis, "n"))),
        ),
        floor=(("zeta", CONSTANT), ("eta", (axis,))),
    )


def power_of(axis: str) -> Limit:
    """E + A x^-b: the coefficients are ln A and -b, then ln E."""
    return Limit(falling=(("A", CONSTANT), ("b", (axis,))), floor=(("E", CONSTANT),))
