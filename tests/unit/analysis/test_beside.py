"""Standard errors and baselines of runs, from the columns of a loaded frame."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from analysis.quality.beside import NOTHING, beside
from analysis.quality.metrics import QUALITIES

LOSS, AUC = (
    next(one for one in QUALITIES if one.column == name) for name in ("probe_loss", "probe_auc")
)
FRAME = pd.DataFrame(
    {
        "probe_loss": [0.5, 0.4, 0.3, 0.2],
        "probe_loss_standard_error": [0.01, 0.02, 0.09, None],
        "probe_loss_of_channels": [0.7, 0.7, None, 0.6],
        "probe_loss_of_nobody": [None] * 4,
        "probe_auc": [0.6] * 4,
        "probe_auc_standard_error": [0.3] * 4,
        "probe_auc_of_channels": [0.55] * 4,
        "probe_auc_of_random": [0.5, 0.5, 0.5001, 0.5],
    }
)


def test_each_metric_has_its_own() -> None:
    loss, auc = beside(FRAME, LOSS), beside(FRAME, AUC)
    assert (loss.standard_error, auc.standard_error) == (0.02, 0.3)  # medians of those known
    assert {name: loss.span(name) for name in loss.baselines} == {"channels": (0.6, 0.7)}
    assert {name: auc.span(name) for name in auc.baselines} == {
        "channels": (0.55, 0.55),
        "random": (0.5, 0.5001),
    }
    assert beside(FRAME[["probe_loss"]], LOSS) == NOTHING


def test_a_baseline_is_along_levels_where_their_runs_share_it() -> None:
    loss, auc = beside(FRAME, LOSS), beside(FRAME, AUC)
    levels = np.array([64.0, 64.0, 128.0, 256.0])
    assert loss.along("channels", levels) == {64.0: 0.7, 256.0: 0.6}  # of 128 nothing is known
    assert loss.along("channels", np.array([64.0, 64.0, 128.0, 64.0])) is None
    # What rounding leaves is no difference.
    assert auc.along("random", np.ones(4)) == {1.0: pytest.approx(0.500025)}
