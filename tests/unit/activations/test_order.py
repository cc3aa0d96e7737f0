"""The data order: a permutation per epoch, computed anywhere from (seed, position) alone."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scaling.activations.order import WINDOW, RowOrder


@given(n_rows=st.integers(1, 3000), block=st.integers(1, 200), seed=st.integers(0, 2**40))
@settings(max_examples=40, deadline=None)
def test_every_epoch_visits_every_row_once(n_rows: int, block: int, seed: int) -> None:
    order = RowOrder(n_rows, seed, block)
    for epoch in range(3):
        rows = order.rows(epoch * n_rows, n_rows)
        assert np.array_equal(np.sort(rows), np.arange(n_rows))


def test_position_alone_determines_the_row() -> None:
    n_rows, batch = 1000, 96  # the batch divides neither the epoch nor the window
    whole = RowOrder(n_rows, seed=5).rows(0, 50 * batch)
    for step in (0, 10, 11, 49):  # 10 crosses into the second epoch
        fresh = RowOrder(n_rows, seed=5).rows(step * batch, batch)
        assert np.array_equal(fresh, whole[step * batch : (step + 1) * batch])


def test_windows_join_without_a_seam() -> None:
    n_rows = 3 * WINDOW // 2 + 7
    around = RowOrder(n_rows, seed=1).rows(WINDOW - 5, 10)
    order = RowOrder(n_rows, seed=1)
    assert np.array_equal(around[:5], order.rows(WINDOW - 5, 5))
    assert np.array_equal(around[5:], order.rows(WINDOW, 5))


def test_one_batch_may_span_several_epochs() -> None:
    rows = RowOrder(10, seed=0).rows(5, 30)
    assert np.array_equal(np.sort(rows[5:15]), np.arange(10))
    assert np.array_equal(np.sort(rows[15:25]), np.arange(10))


def test_seeds_and_epochs_differ() -> None:
    order = RowOrder(500, seed=0)
    first, second = order.rows(0, 500), order.rows(500, 500)
    other = RowOrder(500, seed=1).rows(0, 500)
    assert (first == second).mean() < 0.05
    assert (first == other).mean() < 0.05
    assert (first == np.arange(500)).mean() < 0.05


def test_rows_of_a_block_stay_together() -> None:
    rows = RowOrder(1000, seed=3, block=50).rows(0, 1000)
    steps = np.diff(rows) % 1000
    assert (steps == 1).mean() > 0.97
    assert (np.diff(RowOrder(1000, seed=3).rows(0, 1000)) == 1).mean() < 0.05


def test_last_short_block_moves_with_the_epoch() -> None:
    order = RowOrder(105, seed=0, block=10)
    tails = {tuple(order.rows(epoch * 105 + 100, 5)) for epoch in range(20)}
    assert len(tails) > 10


def test_order_is_uniform_over_first_places() -> None:
    first = [RowOrder(8, seed).rows(0, 1)[0] for seed in range(4000)]
    counts = np.bincount(first, minlength=8)
    assert np.abs(counts - 500).max() < 5 * np.sqrt(500)


@pytest.mark.parametrize("arguments", [(0, 0, 1), (5, 0, 0), (5, -1, 1)])
def test_nonsense_is_refused(arguments: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="no order"):
        RowOrder(*arguments)
