"""Widths and chances of the exchanges, against enumeration and simulation."""

from __future__ import annotations

from itertools import product
from math import comb
from pathlib import Path

import numpy as np
import pytest

from scaling.budget import exchange

DOCS = Path(__file__).parents[2] / "docs"
TABLE = "| shards | k | candidate width |"


def enumerated(k: int, shards: int, least: int) -> float:
    """Over all ways in which k latents fall on shards."""
    ways = list(product(range(shards), repeat=k))
    crowded = sum(max(way.count(shard) for shard in range(shards)) >= least for way in ways)
    return crowded / len(ways)


@pytest.mark.parametrize("least", [1, 2, 3, 4, 5, 6, 7])
@pytest.mark.parametrize(("k", "shards"), [(6, 3), (4, 2), (5, 4), (3, 1)])
def test_the_share_of_crowded_rows_is_exact(k: int, shards: int, least: int) -> None:
    assert exchange.crowded_share(k, shards, least) == pytest.approx(
        enumerated(k, shards, least), abs=1e-12
    )


def test_one_latent_a_shard_is_the_birthday_problem() -> None:
    no_collision = 1.0
    for i in range(23):
        no_collision *= (365 - i) / 365
    assert exchange.crowded_share(23, 365, 2) == pytest.approx(1 - no_collision, rel=1e-9)


@pytest.mark.parametrize(("k", "shards", "least"), [(256, 512, 6), (256, 64, 14), (64, 8, 18)])
def test_it_is_what_a_simulation_finds(k: int, shards: int, least: int) -> None:
    counts = np.random.default_rng(0).multinomial(k, [1 / shards] * shards, size=20_000)
    share = (counts.max(axis=1) >= least).mean()
    expected = exchange.crowded_share(k, shards, least)
    assert share == pytest.approx(expected, abs=4 * (expected / 20_000) ** 0.5)


@pytest.mark.parametrize("shards", [2, 8, 64, 512])
@pytest.mark.parametrize("k", [8, 32, 64, 256, 2048])
def test_a_candidate_width_redoes_less_than_a_hundredth_and_no_narrower_one_is_known_to(
    k: int, shards: int
) -> None:
    n_local = 32_768
    width = exchange.candidate_width(k, n_local, shards)
    assert exchange.redone_share(k, n_local, shards) < exchange.MAX_REDONE_SHARE
    # The width comes from a bound over shards; the exact share lies below it, but not far.
    if 1 < width < k:
        assert shards * binomial_tail(k, shards, width - 1) >= exchange.MAX_REDONE_SHARE
        assert shards * binomial_tail(k, shards, width) < exchange.MAX_REDONE_SHARE


def binomial_tail(k: int, shards: int, least: int) -> float:
    """In whole numbers: sums of coefficients too large for floats."""
    ways = sum(comb(k, i) * (shards - 1) ** (k - i) for i in range(least, k + 1))
    return ways / shards**k


def test_all_latents_of_a_shard_are_never_too_few() -> None:
    assert exchange.candidate_width(32, 2, 64) == 2
    assert exchange.redone_share(32, 2, 64) == 0.0
    assert exchange.truncated_share(4, 1, 8, 2.0) == 0.0


def test_512_shards_make_the_papers_capacity_lose_latents_of_every_token() -> None:
    assert exchange.capacity_width(256, 2**15, 512, 2.0) == 1
    assert exchange.truncated_share(256, 2**15, 512, 2.0) > 0.999_999


def test_butterflies_pass_on_no_more_than_there_is() -> None:
    assert exchange.butterfly_widths(32, 8, 16) == [8, 16, 32, 32]
    assert exchange.exchange_bytes_per_token("butterfly", 32, 8, 16) == 8 * (8 + 16 + 32 + 32)


def test_the_chosen_exchange_has_the_fewest_bytes() -> None:
    chosen = [exchange.choose_exchange(32, 2**20, shards) for shards in (2, 8, 64, 512, 500)]
    assert chosen == ["candidates", "candidates", "candidates", "butterfly", "candidates"]
    assert exchange.choose_exchange(2, 2**20, 2) == "gather"


def table_rows() -> list[list[str]]:
    """The table of docs/budget.md, and of any other page that shows it."""
    pages = [page.read_text().splitlines() for page in DOCS.glob("*.md")]
    return [
        [cell.strip() for cell in line.strip("|").split("|")]
        for lines in pages
        for header in (i for i, line in enumerate(lines) if line.startswith(TABLE))
        for line in lines[header + 2 : header + 11]
    ]


def test_the_documented_table_is_what_the_functions_say() -> None:
    rows = table_rows()
    assert len(rows) >= 9
    for row in rows:
        shards, k = int(row[0]), int(row[1])
        n_local = 2**24 // shards
        expected = [
            str(exchange.candidate_width(k, n_local, shards)),
            *(
                f"{exchange.exchange_bytes_per_token(name, k, n_local, shards):,.0f}"
                for name in exchange.EXCHANGES
            ),
            exchange.choose_exchange(k, n_local, shards),
            f"{100 * exchange.redone_share(k, n_local, shards):.2f}%",
            f"{exchange.capacity_bytes_per_token(k, n_local, shards, 2.0):,}",
            f"{100 * exchange.truncated_share(k, n_local, shards, 2.0):.3g}%",
        ]
        assert row[2:] == expected
