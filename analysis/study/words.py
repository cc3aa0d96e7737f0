"""A fitted law as lines for a terminal."""

from __future__ import annotations

from analysis.fitting.bounds import bounds
from analysis.study.fitted import FittedLaw


def describe(fitted: FittedLaw) -> str:
    """The law with its intervals, fit and held-out error, as lines for a terminal."""
    fit = fitted.fit
    sizes = ", ".join(f"{name} = {value:g}" for name, value in fit.law.reference.items())
    lines = [f"{fitted.title}: {fit.law.formula}" + (f"  ({sizes})" if sizes else "")]
    intervals = fitted.ci95
    for name, value in fit.law.parameters.items():
        low, high = intervals[name]
        shown = "0 (none)" if name == "E" and fitted.no_floor else f"{value:.5g}"
        lines.append(f"  {name:<7}{shown:>12}   95% [{low:.4g}, {high:.4g}]")
    lines.append(f"  rms log residual {fit.rms_log_residual:.2%} over {len(fit.table)} runs")
    lines += [f"  {fit.method} fit; intervals: {fitted.ci95_method}"]
    lines += [f"  at a bound: {message}" for message in bounds(fit).values()]
    lines += [f"  {holdout_line(fitted)}"] if fitted.holdout else []
    lines += [f"  warning {code}: {message}" for code, message in fitted.warnings.items()]
    return "\n".join(lines)


def holdout_line(fitted: FittedLaw) -> str:
    held = fitted.holdout
    if held is None:
        return "nothing held out"
    return (
        f"held out: {len(held.table)} runs, rms log error {held.rms_log:.2%}, worst "
        f"{held.worst_log:.2%}, {held.in_pi95} of {len(held.table)} in their 95% prediction "
        "intervals"
    )
