"""A fitted law as it lies in a JSON file: enough of it to predict, with intervals.

Read from the JSON of `python -m analysis.fit` (one fit) or a report's fits.json (a list of them).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from analysis.counts import short_count
from analysis.errors import TableError
from analysis.laws import LAWS
from analysis.laws.forms import Array, Points
from analysis.laws.law import Law, logs_of
from analysis.planning.stored_checks import REMAKE, check_fit, one_whole_number
from analysis.records.columns import SAME_BUDGET
from analysis.study.fitted import SCHEMA_VERSION, FittedLaw, to_json
from analysis.uncertainty.interval import Interval, student_interval

_SAME = SAME_BUDGET  # of any axis: nearer than this is no other value


class Prediction(NamedTuple):
    """At M points. Intervals are 95%, and None where the fit left a combination of its
    parameters free."""

    value: Array  # [M], loss (or tokens, for a law of tokens to convergence)
    of_law: Interval | None  # of the law itself: the doubt of its parameters
    of_run: Interval | None  # of ONE new run: that doubt and the noise of a run


@dataclass(frozen=True)
class StoredLaw:
    """A law, its doubt, and what it was fitted on. P parameters in the law's order."""

    law: Law
    title: str
    rows: str
    loss: str
    n_runs: int
    covariance: Array | None  # of the named parameters [P, P]; None: one combination is free
    variance: float  # of ln loss of one run about the law; with the errors that runs share, if any
    degrees_of_freedom: int
    ranges: Mapping[str, tuple[float, float]]  # axis -> smallest and largest value fitted
    warnings: Mapping[str, str]  # code -> message
    d_model: int | None = None  # of the sweep's autoencoders, where the file says it
    shared_by: str = ""  # "n", "seed", ...: whose shared errors the covariance holds, if any

    def predict(self, points: Points, level: float = 0.95) -> Prediction:
        """Value and intervals at points (axis -> float64 [M]).

        Student's t times sqrt(J C J' [+ s^2]) on the log, as for a fit's held-out runs. It
        assumes that the form of the law holds there.
        """
        log_value = self.law.log_predict(points)
        doubt = self.doubt(points)
        if doubt is None:
            return Prediction(np.exp(log_value), None, None)
        return Prediction(
            np.exp(log_value),
            student_interval(log_value, doubt, self.degrees_of_freedom, level),
            student_interval(log_value, doubt + self.variance, self.degrees_of_freedom, level),
        )

    def doubt(self, points: Points) -> Array | None:
        """Variance of the log of the law at points, [M]; None where it has none."""
        if self.covariance is None:
            return None
        jacobian = self.law.jacobian(points)
        # Rounding may leave a variance of 1e-20 below zero where the law is known exactly.
        return np.maximum(np.einsum("mp,pq,mq->m", jacobian, self.covariance, jacobian), 0.0)

    def coefficient_covariance(self) -> Array:
        """[P, P] of the form's coefficients in plain logs. TableError where there is none."""
        if self.covariance is None:
            raise TableError(
                f"the fit of {self.title} on {self.rows} has no covariance: its runs left a "
                "combination of parameters free. Add levels of n, k or tokens, or choose another "
                "law with --law."
            )
        jacobian = self.law.coefficient_jacobian()
        return jacobian @ self.covariance @ jacobian.T

    def outside(self, points: Points) -> list[str]:
        """For each point, how far it lies beyond the runs fitted; "" within their ranges."""
        logs = logs_of(points, [axis for axis in self.law.axes if axis in self.ranges])
        n_points = len(next(iter(points.values())))
        notes: list[list[str]] = [[] for _ in range(n_points)]
        for axis, values in logs.items():
            low, high = np.log(self.ranges[axis])
            for point, value in enumerate(values.tolist()):
                if value > high + _SAME:
                    notes[point].append(f"{axis} {_times(value - high)} above")
                elif value < low - _SAME:
                    notes[point].append(f"{axis} {_times(low - value)} below")
        return ["; ".join(note) for note in notes]


def _times(log_ratio: float) -> str:
    ratio = float(np.exp(log_ratio))
    return f"{ratio:.0f}x" if ratio >= 10 else f"{ratio:.3g}x"


def read_law(
    path: Path, *, law: str | None = None, rows: str | None = None, clustered: bool = True
) -> StoredLaw:
    """The fit that `law` (a name, or a title) and `rows` (words of the fit's `rows`) choose.

    By default a report's headline law, of the fit on all runs where there is one. Where the fit
    was asked for clusters, its doubt is that of errors shared within them, unless `clustered` is
    false. TableError where the file is no such JSON, or holds no fit that was asked for.
    """
    content = read_content(path)
    fits = content.get("fits", [content])
    if not (isinstance(fits, list) and all(isinstance(fit, dict) for fit in fits)):
        raise TableError(f"{path}: fits is not a list of fits; {REMAKE}.")
    chosen = _choose(path, fits, law or _headline(content, fits), rows)
    chosen = chosen if clustered else {**chosen, "clustered": None}
    return stored_law(chosen, source=str(path), d_model=provenance_number(path, content, "d_model"))


def of_fitted(fitted: FittedLaw, d_model: int | None = None) -> StoredLaw:
    """What `read_law` would read of this fit."""
    return stored_law(to_json(fitted), source=fitted.title, d_model=d_model)


def stored_law(fit: Mapping[str, Any], *, source: str, d_model: int | None = None) -> StoredLaw:
    """From the JSON object of one fit. TableError where it lacks what predictions need."""
    try:
        return _stored(fit, d_model)
    except TableError as error:
        raise TableError(f"{source}: {error}") from error
    except (KeyError, TypeError, ValueError) as error:
        raise TableError(
            f"{source} is not the JSON of a fit ({type(error).__name__}: {error}); {REMAKE}."
        ) from error


def read_content(path: Path) -> dict[str, Any]:
    """The JSON object of the file. TableError where it is none, or is of a newer version."""
    try:
        content = json.loads(path.read_text())
    except OSError as error:
        raise TableError(
            f"cannot read {path} ({error.strerror}); give the JSON of python -m analysis.fit "
            "--json, or the fits.json of a report."
        ) from error
    except (ValueError, RecursionError) as error:
        raise TableError(f"{path} is not JSON ({error}); {REMAKE}.") from error
    if not isinstance(content, dict):
        raise TableError(f"{path} holds no JSON object; {REMAKE}.")
    version = content.get("schema_version")
    if isinstance(version, int) and version > SCHEMA_VERSION:
        raise TableError(
            f"{path} has schema_version {version}, newer than this program's {SCHEMA_VERSION}; "
            "use the version that made it, or make the file again."
        )
    return content


def _headline(content: Mapping[str, Any], fits: Sequence[Mapping[str, Any]]) -> str:
    headline = content.get("headline")
    named = headline.get("law") if isinstance(headline, dict) else None
    return str(named or (fits[0].get("law") if fits else ""))


def _choose(
    path: Path, fits: Sequence[Mapping[str, Any]], law: str, rows: str | None
) -> Mapping[str, Any]:
    of_law = [fit for fit in fits if law in (fit.get("law"), fit.get("title"))]
    wanted = [fit for fit in of_law if rows is None or rows in str(fit.get("rows"))]
    if not wanted:
        listed = "; ".join(_label(fit) for fit in fits) or "none"
        asked = f"--law {law!r}" + (f" --rows {rows!r}" if rows is not None else "")
        raise TableError(f"{path} has no fit of {asked}; its fits are: {listed}.")
    # The fit on all runs is the one meant for use beyond the sweep.
    return next((fit for fit in wanted if fit.get("rows") in ("all runs", "all rows")), wanted[0])


def _label(fit: Mapping[str, Any]) -> str:
    return f"{fit.get('law')}, {fit.get('title')!r}, on {fit.get('rows')!r}"


def provenance_number(path: Path, content: Mapping[str, Any], name: str) -> int | None:
    """What `provenance` of the file's `content` says all runs have; see `one_whole_number`."""
    provenance = content.get("provenance")
    found = provenance.get(name) if isinstance(provenance, dict) else None
    try:
        return one_whole_number(f"provenance.{name}", found)
    except TableError as error:
        raise TableError(f"{path}: {error}") from error


def _stored(fit: Mapping[str, Any], d_model: int | None) -> StoredLaw:
    if str(fit["law"]) not in LAWS:
        raise TableError(f"the law {fit['law']!r} is not known here; known: {', '.join(LAWS)}.")
    law = LAWS[fit["law"]]
    check_fit(fit, law)
    n_runs = int(fit["n_used"])
    freedom = int(fit.get("degrees_of_freedom", n_runs - len(law.parameter_names)))
    # Files made before the variance was in them: it follows from the sum of squares.
    variance = fit.get("variance", 2 * fit["half_sum_of_squares"] / max(freedom, 1))
    clustered = fit.get("clustered") or {}
    order = fit["covariance_order"]
    return StoredLaw(
        law=law(**_parameters(fit, law), **{k: float(v) for k, v in fit["reference"].items()}),
        title=str(fit["title"]),
        rows=str(fit["rows"]),
        loss=str(fit["loss"]),
        n_runs=n_runs,
        covariance=_covariance(clustered.get("covariance", fit["covariance"]), order, law),
        variance=float(clustered.get("variance", variance)),
        degrees_of_freedom=int(clustered.get("degrees_of_freedom", freedom)),
        ranges={axis: (float(a), float(b)) for axis, (a, b) in fit.get("ranges", {}).items()},
        warnings=dict(fit.get("warning_messages", {})),
        d_model=d_model,
        shared_by=str(clustered.get("by", "")),
    )


def _parameters(fit: Mapping[str, Any], law: type[Law]) -> dict[str, float]:
    values = {name: fit["params"][name] for name in law.parameter_names}
    missing = [name for name, value in values.items() if value is None]
    if missing:
        raise TableError(
            f"the fit of {fit['title']} has no finite {missing[0]}, so it cannot predict; choose "
            "another law with --law, or fit more runs."
        )
    return {name: float(value) for name, value in values.items()}


def _covariance(
    stated: Sequence[Sequence[float | None]] | None, order: Sequence[str], law: type[Law]
) -> Array | None:
    if stated is None or any(value is None for row in stated for value in row):
        return None
    rows = [order.index(name) for name in law.parameter_names]
    covariance = np.array(stated, dtype=np.float64)[np.ix_(rows, rows)]
    return 0.5 * (covariance + covariance.T)


def check_point(stored: StoredLaw, points: Points) -> None:
    """TableError where points lack an axis of the law, or name one that it does not hold.

    An axis held constant by the fit (one token budget) may be named at its value.
    """
    axes = stored.law.axes
    missing = [axis for axis in axes if axis not in points]
    if missing:
        raise TableError(
            f"{stored.title} ({stored.law.name}) needs {', '.join(axes)}; {missing[0]} is missing. "
            f"Add {missing[0]}=VALUE."
        )
    if {"n", "k"} <= set(points) and (points["k"] > points["n"]).any():
        row = int(np.argmax(points["k"] > points["n"]))
        raise TableError(
            f"k = {points['k'][row]:g} is above n = {points['n'][row]:g}: no more than n latents "
            "can be active, and no law holds there. Give a smaller k."
        )
    for axis in (axis for axis in points if axis not in axes):
        low, high = stored.ranges.get(axis, (np.nan, np.nan))
        at_value = (points[axis] >= low * (1 - _SAME)) & (points[axis] <= high * (1 + _SAME))
        if not (low == high and at_value.all()):
            known = f" (fitted at {axis} = {short_count(low)} only)" if low == high else ""
            raise TableError(
                f"{stored.title} ({stored.law.name}) says nothing of {axis}{known}; leave "
                f"{axis} out, or choose a law that holds it with --law."
            )
