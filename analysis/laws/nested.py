"""Rivals nested in the laws of n and k: the same law with some coefficients held at zero."""

from __future__ import annotations

from dataclasses import make_dataclass
from typing import cast

from analysis.laws.joint import (
    LIMIT,
    LatentsAndK,
    LatentsKTokens,
    LatentsKTokensTilted,
    OfSizes,
)
from analysis.laws.law import Law

# What a rival leaves out of the limit: suffix of its name, words for its title, parameters.
_CHANGES = (
    ("no_floor", "no floor", ("zeta", "eta")),
    ("constant_floor", "floor without k", ("eta",)),
    ("no_gamma", "no gamma", ("gamma",)),
)


def nested(law: type[OfSizes], suffix: str, words: str, dropped: tuple[str, ...]) -> type[Law]:
    """`law` without the parameters `dropped`, as a class named law.name + suffix."""
    limit = LIMIT.without(*dropped)
    names = tuple(name for name in law.parameter_names if name not in dropped)
    behavior = law.__bases__[0]
    assert issubclass(behavior, OfSizes)
    references = [f"{axis}0" for axis in law.reference_names]
    held = " = ".join([*dropped, "0"]) if "zeta" not in dropped else "no second term"
    made = make_dataclass(
        f"{law.__name__}_{suffix}",
        [(name, float) for name in (*names, *references)],
        bases=(behavior,),
        frozen=True,
        namespace={
            "__doc__": f"{law.title} with {words}: nested in {law.name}.",
            **{"name": f"{law.name}_{suffix}", "title": f"{law.title}, {words}"},
            "formula": f"{law.formula.split('=')[0]}= {limit.formula}"
            if law is LatentsAndK
            else f"{law.formula} with {held} in L(n,k)",
            **{"axes": law.axes, "limit": limit, "form": behavior.form_with(limit)},
            **{"floor_column": limit.floor_column, "parameter_names": names},
        },
    )
    return cast(type[Law], made)


RIVALS: dict[str, tuple[type[Law], ...]] = {
    law.name: tuple(nested(law, *change) for change in _CHANGES)
    for law in (LatentsAndK, LatentsKTokens, LatentsKTokensTilted)
}
