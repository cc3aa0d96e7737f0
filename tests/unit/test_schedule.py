from __future__ import annotations

import pytest

from scaling.schedule import INVERSE_SQRT_N, STEP_LIMITED, lr_at


def test_published_calibration() -> None:
    assert INVERSE_SQRT_N.at(2**14, 1e6, 256) == pytest.approx(2e-4)
    assert INVERSE_SQRT_N.at(2**16, 1e9, 2**17) == pytest.approx(1e-4)


def test_step_limited_rule_at_its_anchor_and_exponents() -> None:
    assert STEP_LIMITED.at(1024, 1_000_000, 256) == pytest.approx(1.9e-3)
    assert STEP_LIMITED.at(4096, 250_000, 512) == pytest.approx(
        1.9e-3 * 4**-0.25 * 0.25**-0.4 * 2**0.45
    )


def lr(tokens: int, **change: float) -> float:
    settings = {"peak": 1.0, "total_tokens": 1000, "warmup_tokens": 0, "decay_fraction": 0.0}
    return lr_at(tokens, **(settings | change))  # type: ignore[arg-type]


def test_constant_by_default() -> None:
    assert [lr(t) for t in (0, 500, 999)] == [1.0] * 3


def test_linear_decay_over_the_last_share() -> None:
    rates = [lr(t, decay_fraction=0.2) for t in (0, 800, 900, 990)]
    assert rates == pytest.approx([1.0, 1.0, 0.5, 0.05])


def test_warmup_rises_from_above_zero() -> None:
    rates = [lr(t, warmup_tokens=100) for t in (0, 50, 100)]
    assert 0 < rates[0] < rates[1] < rates[2] == 1.0
