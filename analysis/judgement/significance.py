"""When a test speaks against a law, and the F test that several of them make."""

from __future__ import annotations

from typing import Any, NamedTuple

from scipy.special import fdtrc

# Of ten tests on a page at 5% most right laws would fail one.
SIGNIFICANT = 0.01


def is_found(p: float | None) -> bool:
    """Whether a test with this p speaks against the law; one that was not made does not."""
    return p is not None and p < SIGNIFICANT


class FTest(NamedTuple):
    """Two mean squares compared; `freedoms` are those of the first, which a wrong law raises, and
    of the second."""

    f: float
    freedoms: tuple[float, float]

    @property
    def p(self) -> float:
        """Of a ratio this large by chance. Rounding may leave one below 0, which is as 0."""
        return float(fdtrc(*self.freedoms, max(self.f, 0.0)))

    @property
    def text(self) -> str:
        return (
            f"F = {self.f:.3g} on {self.freedoms[0]:.0f} and {self.freedoms[1]:.3g} degrees of "
            f"freedom, p = {self.p:.2g}"
        )


def f_json(test: FTest | None) -> dict[str, Any]:
    """By name; null where there is no test."""
    if test is None:
        return {"f": None, "degrees_of_freedom": None, "p": None}
    return {"f": test.f, "degrees_of_freedom": test.freedoms, "p": test.p}
