"""Is a run converged by its own curve? How much the last doubling of its tokens still bought."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.special import stdtrit

from analysis.laws.forms import Array

# The curve over the last doubling must reach back this near to half of its tokens.
_NEAR_HALF = 1.1
# One batch's training loss is noisy: a line through fewer rows says little. Held-out losses are of
# one fixed set, so two of them may be compared as they are.
_LEAST_TRAIN_ROWS = 8
_LEAST_HELD_OUT_ROWS = 2
# A learning rate that falls by more within the last doubling lowers the loss by itself.
_MOST_LR_FALL = 0.01
_CONFIDENCE = 0.95


class CurveFall(NamedTuple):
    """Relative fall of the loss over the last doubling of tokens; NaN where it cannot be told."""

    fall: float
    at_most: float  # upper end of the one-sided 95% interval
    column: str  # of the curve that was read
    problem: str  # why there is no fall, "" where there is one


def last_doubling(curve: pd.DataFrame, loss_name: str) -> CurveFall:
    """Fall of one run's loss from half of its tokens to its end, by a line of ln loss in ln tokens.

    `curve` has a row per logged step: tokens, train/lr, and eval/LOSS_NAME where held-out losses
    were logged, else train/normalized_mse (which stands for the raw loss alone). A run whose
    learning rate falls within the doubling is not judged: its fall is the schedule's.
    """
    column = _column(curve, loss_name)
    if not column:
        return _unknown("", f"its curve has no eval/{loss_name}")
    if "train/lr" not in curve:
        return _unknown(column, "its curve has no train/lr, so a decay cannot be ruled out")
    known = curve.loc[curve[column] > 0, ["tokens", column]].dropna()
    least = _LEAST_HELD_OUT_ROWS if column.startswith("eval/") else _LEAST_TRAIN_ROWS
    half = known["tokens"].max() / 2
    part = known.loc[known["tokens"] >= half / _NEAR_HALF]
    if len(part) < least or part["tokens"].min() > half * _NEAR_HALF:
        return _unknown(column, f"its curve has no {least} values of {column} from half its tokens")
    if _decays(curve, half):
        return _unknown(column, "its learning rate falls within the last doubling of tokens")
    log_tokens, log_loss = np.log(part.to_numpy(np.float64)).T
    return _fall(log_tokens, log_loss, column)


def _column(curve: pd.DataFrame, loss_name: str) -> str:
    choices = [f"eval/{loss_name}"]
    # The training loss is of the raw weights: it says nothing of their average.
    choices += ["train/normalized_mse"] if loss_name == "normalized_mse" else []
    usable = (c for c in choices if c in curve and np.count_nonzero(curve[c].notna()) > 1)
    return next(usable, "")


def _decays(curve: pd.DataFrame, half: float) -> bool:
    rates = curve.loc[curve["tokens"] >= half, "train/lr"].dropna().to_numpy(np.float64)
    return len(rates) == 0 or bool(rates.min() < (1 - _MOST_LR_FALL) * rates.max())


def _fall(log_tokens: Array, log_loss: Array, column: str) -> CurveFall:
    centered = log_tokens - log_tokens.mean()
    spread = float(centered @ centered)
    slope = float(centered @ log_loss) / spread
    residuals = log_loss - log_loss.mean() - slope * centered
    freedom = len(log_loss) - 2
    error = np.sqrt(residuals @ residuals / freedom / spread) if freedom else 0.0
    steepest = slope - (float(stdtrit(freedom, _CONFIDENCE)) * float(error) if freedom else 0.0)
    fall, at_most = (1.0 - float(np.exp(s * np.log(2.0))) for s in (slope, steepest))
    return CurveFall(fall, at_most, column, "")


def _unknown(column: str, problem: str) -> CurveFall:
    return CurveFall(float("nan"), float("nan"), column, problem)
