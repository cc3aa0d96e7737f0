"""Errors shared by runs of one n: what knows of them covers better than what does not."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fabricate import PLANTED, demo_cells, planted_table
from gpt4 import POINTS, gpt4_table, with_losses

from analysis.errors import TableError
from analysis.fit import fit_command
from analysis.fitting.fit import fit_law
from analysis.laws.joint import LatentsAndK, LatentsKTokens
from analysis.records.table import RunTable
from analysis.study.fitted import fit_table
from analysis.uncertainty.bootstrap import bootstrap, resample_clusters
from analysis.uncertainty.clusters import cluster_ids, clustered_covariance

TRUTH = fit_law(LatentsAndK, gpt4_table()).law


def _table(seeds: int = 1) -> RunTable:
    cells = [cell for cell in demo_cells() for _ in range(seeds)]
    return planted_table(PLANTED, cells, 0.01, seeds=[i % seeds for i in range(len(cells))])


def test_clusters_are_runs_of_one_n_one_seed_or_one_cell() -> None:
    table = _table(seeds=5)
    by_n = cluster_ids(table, "n")
    assert by_n.shape == (len(table),)
    assert set(by_n) == set(range(5))
    for cluster in range(5):
        assert len(set(table.points["n"][by_n == cluster])) == 1
    assert cluster_ids(table, "seed").tolist() == [0, 1, 2, 3, 4] * (len(table) // 5)
    cells = cluster_ids(table, "cell")
    assert (np.bincount(cells) == 5).all()
    both = cluster_ids(table, ("n", "seed"))
    np.testing.assert_array_equal(both, np.column_stack([by_n, cluster_ids(table, "seed")]))


@pytest.mark.parametrize(
    ("by", "words"),
    [
        ("k", "not known"),
        ("seed", "at least 4 of them, but the runs to fit have 1"),
        ((), "no way"),
    ],
)
def test_clusters_that_say_nothing_are_refused(by, words: str) -> None:
    with pytest.raises(TableError, match=words):
        cluster_ids(_table(), by)


def test_draws_take_whole_clusters_and_can_determine_the_law() -> None:
    table = gpt4_table()
    ids = cluster_ids(table, "n")
    levels = np.column_stack([ids, np.unique(table.points["k"], return_inverse=True)[1]])
    counts = resample_clusters(np.random.default_rng(0), 300, ids, levels, least=7)
    for cluster in range(9):
        assert (counts[:, ids == cluster] == counts[:, ids == cluster][:, :1]).all()
    drawn = counts @ (ids[:, None] == np.arange(9))
    assert (drawn.sum(axis=1) == 45).all()  # nine clusters of five runs
    assert (np.count_nonzero(drawn, axis=1) >= 3).all()
    four = np.flatnonzero(ids < 4)
    few = resample_clusters(np.random.default_rng(0), 3000, ids[four], levels[four], least=1)
    assert (np.count_nonzero(few @ np.eye(4)[ids[four]], axis=1) >= 3).all()


def test_two_ways_multiply_the_draws_of_each() -> None:
    table = _table(seeds=5)
    ids = cluster_ids(table, ("n", "seed"))
    levels = cluster_ids(table, "n")[:, None]
    counts = resample_clusters(np.random.default_rng(0), 50, ids, levels, least=7)
    grid = counts.reshape(50, -1, 5)  # runs of one cell, by seed
    first = grid[:, 0]
    known = first.sum(axis=1) > 0
    for cell in range(1, grid.shape[1]):
        # Every cell has the draws of the seeds, times those of its n: all are proportional.
        cross = grid[known, cell] * first[known].sum(1)[:, None]
        np.testing.assert_allclose(cross, first[known] * grid[known, cell].sum(1)[:, None])


def test_runs_as_their_own_clusters_give_the_textbook_sandwich() -> None:
    fit = fit_law(LatentsAndK, gpt4_table())
    found = clustered_covariance(fit, np.arange(45), "CR1")
    bread = np.linalg.inv(fit.jacobian.T @ fit.jacobian)
    meat = (fit.jacobian * fit.residuals[:, None] ** 2).T @ fit.jacobian
    np.testing.assert_allclose(found.centered, 45 / 39 * bread @ meat @ bread, rtol=1e-8)
    assert found.freedom == 44


def test_cr3_is_the_jackknife_over_clusters() -> None:
    """Of a law linear in its coefficients it is so exactly: here the linearized law."""
    fit = fit_law(LatentsAndK, gpt4_table())
    ids = cluster_ids(fit.table, "n")
    found = clustered_covariance(fit, ids, "CR3")
    steps = []
    for cluster in range(9):
        kept = ids != cluster
        steps.append(np.linalg.lstsq(fit.jacobian[kept], fit.residuals[kept], rcond=None)[0])
    jackknife = 8 / 9 * np.array(steps).T @ np.array(steps)
    np.testing.assert_allclose(found.centered, jackknife, rtol=1e-4, atol=1e-9)
    assert found.freedom == 8


def test_two_ways_add_up_by_inclusion_and_exclusion() -> None:
    table = _table(seeds=5)
    fit = fit_law(LatentsKTokens, table)
    by_n, by_seed = cluster_ids(table, "n"), cluster_ids(table, "seed")
    one = [
        clustered_covariance(fit, ids, "CR1").centered
        for ids in (by_n, by_seed, by_n * 5 + by_seed)
    ]
    both = clustered_covariance(fit, np.column_stack([by_n, by_seed]), "CR1")
    values, vectors = np.linalg.eigh(one[0] + one[1] - one[2])
    np.testing.assert_allclose(
        both.centered, (vectors * np.maximum(values, 0)) @ vectors.T, rtol=1e-6, atol=1e-12
    )
    assert both.freedom == 4


def test_shared_errors_are_covered_better_with_clusters_than_without() -> None:
    """Predictions on the paper's design, 1% shared by n and 0.5% of each run's own."""
    table, hits = gpt4_table(), {"plain": [], "sandwich": [], "bootstrap": []}
    by_n = np.unique(table.points["n"], return_inverse=True)[1]
    truth = TRUTH.log_predict(table.points)
    for seed in range(20):
        rng = np.random.default_rng(seed)
        noise = 0.01 * rng.standard_normal(9)[by_n] + 0.005 * rng.standard_normal(45)
        noisy = with_losses(table, np.exp(truth + noise))
        shared = fit_table(LatentsAndK, noisy, n_bootstrap=0, clusters="n")
        plain = replace(shared, clusters=None)
        refits = bootstrap(shared.fit, 200, seed, by_n)
        for name, kind in (("plain", plain), ("sandwich", shared), ("bootstrap", refits)):
            band = kind.band(table.points)
            hits[name].append(np.mean((band.low <= np.exp(truth)) & (np.exp(truth) <= band.high)))
    covered = {name: np.mean(found) for name, found in hits.items()}
    assert covered["plain"] < 0.8
    assert covered["sandwich"] > covered["plain"] + 0.1
    assert covered["bootstrap"] > covered["plain"] + 0.1


def test_the_command_clusters(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out.json"
    arguments = ("--law", "l_nk", "--table", str(POINTS), "--json", str(out), "--bootstrap", "200")
    assert fit_command((*arguments, "--clusters", "n")) == 0
    found = json.loads(out.read_text())
    assert found["ci95_method"] == "percentile bootstrap over clusters by n, 200 refits, seed 0"
    clustered = found["clustered"]
    assert (clustered["by"], clustered["kind"], clustered["degrees_of_freedom"]) == ("n", "CR3", 8)
    assert clustered["se"].keys() == found["se"].keys() == clustered["ci95"].keys()
    assert clustered["se"] != found["se"]
    assert fit_command((*arguments, "--clusters", "seed")) == 2
    assert "at least 4" in capsys.readouterr().err
    assert fit_command((*arguments, "--clusters", "n,colour")) == 2
    assert "clusters 'colour'" in capsys.readouterr().err
    assert fit_command(arguments) == 0
    assert json.loads(out.read_text())["clustered"] is None


def test_the_seed_decides_clustered_refits() -> None:
    fit = fit_law(LatentsAndK, gpt4_table())
    ids = cluster_ids(fit.table, "n")
    first, again = (bootstrap(fit, 100, 3, ids) for _ in range(2))
    np.testing.assert_array_equal(first.coefficients, again.coefficients)
    assert not np.array_equal(first.coefficients, bootstrap(fit, 100, 3).coefficients)
