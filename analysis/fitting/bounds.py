"""Where an optimum lies on the edge of what its law can mean: no floor left, a wrong sign."""

from __future__ import annotations

import numpy as np

from analysis.fitting.fit import Fit
from analysis.laws.forms import Points
from analysis.laws.law import logs_of

# Below this share of every fitted loss a floor moves no prediction: its log is on a plateau.
LEAST_FLOOR_SHARE = 1e-3


def floor_share(fit: Fit, points: Points) -> float:
    """The largest share of the predicted loss that the floor takes at any point; 0 without one."""
    column = fit.law.floor_column
    if column is None:
        return 0.0
    design = fit.law.form.design(logs_of(points, fit.law.axes))
    coefficients = fit.law.coefficients()
    term = next(c for c in design.columns[0] if c.start == column)
    log_floor = design.features_MP[:, term] @ coefficients[term]
    return float(np.exp(log_floor - fit.law.log_predict(points)).max())


def bounds(fit: Fit) -> dict[str, str]:
    """Parameters at a bound, each with what that means; empty for an inner optimum."""
    found = {
        name: f"{name} = {fit.law.parameters[name]:.3g} is not above 0, where the law means nothing"
        for name in fit.law.positive
        if not fit.law.parameters[name] > 0
    }
    if fit.law.floor_column is not None:
        share = floor_share(fit, fit.table.points)
        if share < LEAST_FLOOR_SHARE:
            name = "E" if "E" in fit.law.parameters else "zeta"
            found[name] = (
                f"the floor is at most {share:.1g} of any fitted loss: the runs fit without one, "
                "and its size is known from above only"
            )
    return found
