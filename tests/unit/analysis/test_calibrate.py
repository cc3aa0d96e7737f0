"""Learning-rate calibration on planted valleys: it finds their bottoms, and says when it cannot."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from fabricate import Cell as Point
from fabricate import record, write_record

from analysis.calibrate import calibrate_command
from analysis.calibration.cells import Cell, best_rate, read_cells
from analysis.calibration.rule import rule_of_cells, rule_of_runs
from analysis.errors import TableError
from scaling.schedule import STEP_LIMITED, PowerRule

TRUE = PowerRule(2.4e-3, n=-0.33, tokens=-0.30, batch=0.6)
CURVATURE = 0.1
"""Twice the best rate costs 4.9%."""


def valley(
    n: int,
    tokens: int,
    batch: int = 256,
    *,
    scales: Sequence[float] = (0.5, 1, 2),
    noise: float = 0,
) -> Cell:
    """A cell of rates around the rule in use, whose best rate is TRUE's."""
    lr = np.array(scales) * STEP_LIMITED.at(n, tokens, batch)
    u = np.log(lr / TRUE.at(n, tokens, batch))
    errors = noise * np.random.default_rng(n + tokens + batch).standard_normal(len(lr))
    log_loss = np.log(0.3) - 0.1 * np.log(n / 1024) + CURVATURE * u**2 + errors
    return Cell(n, 16, float(tokens), batch, lr, log_loss, np.ones(len(lr)), np.zeros(len(lr)))


def grid(noise: float = 0.0) -> list[Cell]:
    return [
        valley(n, tokens, batch, noise=noise)
        for n in (512, 2048, 8192)
        for tokens in (250_000, 1_000_000)
        for batch in (256, 512)
    ]


def test_the_bottom_of_a_valley_is_found_exactly() -> None:
    best = best_rate(valley(2048, 1_000_000))
    assert best.usable
    assert best.lr == pytest.approx(TRUE.at(2048, 1_000_000, 256), rel=1e-9)
    assert best.curvature == pytest.approx(CURVATURE)
    assert best.cost_of_twice == pytest.approx(np.expm1(CURVATURE * np.log(2) ** 2))


def test_errors_are_those_of_repeated_experiments() -> None:
    cell, spread = valley(2048, 1_000_000), 0.003
    noise = spread * np.random.default_rng(0).standard_normal((2000, 3))
    found = [best_rate(_with(cell, cell.log_loss + e), spread) for e in noise]
    assert np.std([np.log(best.lr) for best in found]) == pytest.approx(
        best_rate(cell, spread).log_error, rel=0.1
    )


def _with(cell: Cell, log_loss: np.ndarray) -> Cell:
    point = (cell.n_latents, cell.k, cell.tokens, cell.batch_tokens)
    return Cell(*point, cell.lr, log_loss, cell.n_seeds, cell.dead)


@pytest.mark.parametrize(
    ("cell", "said"),
    [
        (valley(2048, 1_000_000, scales=(4, 8, 16)), "edge: the best of 3 rates is the lowest"),
        (valley(2048, 1_000_000, scales=(0.1, 0.2, 0.4)), "is the highest; train higher"),
        (valley(2048, 1_000_000, scales=(0.5, 1)), "2 rates; a parabola needs 3"),
        (valley(2048, 1_000_000, scales=(0.01, 1, 90)), "fewer than 3 rates within a factor 4"),
        (
            _with(valley(2048, 1_000_000), np.log(np.array([0.28, 0.3, 0.28]))),
            "no valley",
        ),
    ],
)
def test_a_bottom_not_seen_is_flagged(cell: Cell, said: str) -> None:
    best = best_rate(cell)
    assert not best.usable
    assert said in best.problem


def test_far_rates_do_not_move_the_bottom() -> None:
    """Beyond a factor 4 a valley is steeper than its parabola: latents die, runs diverge."""
    cell = valley(2048, 1_000_000, scales=(0.5, 1, 2, 32))
    log_loss = cell.log_loss.copy()
    log_loss[-1] = np.log(0.95)
    assert best_rate(_with(cell, log_loss)).lr == pytest.approx(TRUE.at(2048, 1_000_000, 256))


@pytest.mark.parametrize(
    "fit",
    [
        lambda cells: rule_of_cells([best_rate(cell) for cell in cells], STEP_LIMITED),
        lambda cells: rule_of_runs(cells, STEP_LIMITED),
    ],
)
def test_a_planted_rule_is_recovered(fit: Callable) -> None:
    exact = fit(grid())
    assert exact.rule.lr == pytest.approx(TRUE.lr, rel=1e-6)
    for axis in ("n", "tokens", "batch"):
        assert getattr(exact.rule, axis) == pytest.approx(getattr(TRUE, axis), abs=1e-6)
    noisy = fit(grid(noise=0.003))
    for axis in ("n", "tokens", "batch"):
        low, high = noisy.interval(axis)
        assert low < getattr(TRUE, axis) < high
        assert high - low < 0.5


def test_the_errors_of_all_runs_at_once_cover() -> None:
    """95% intervals of the exponents hold the truth in about 95 of 100 repetitions."""
    rng, inside = np.random.default_rng(1), []
    cells = grid()
    for _ in range(200):
        noisy = [_with(c, c.log_loss + 0.003 * rng.standard_normal(len(c.lr))) for c in cells]
        low, high = rule_of_runs(noisy, STEP_LIMITED).interval("tokens")  # type: ignore[misc]
        inside.append(low < TRUE.tokens < high)
    assert 0.90 <= np.mean(inside) <= 0.99


def test_all_runs_at_once_use_cells_whose_bottom_is_at_the_edge() -> None:
    cells = [c for c in grid() if c.n_latents < 8192]
    edges = [valley(8192, d, scales=(0.25, 0.5)) for d in (250_000, 1_000_000)]
    found = rule_of_runs([*cells, *edges], STEP_LIMITED)
    assert found.rule.n == pytest.approx(TRUE.n, abs=1e-6)
    assert not any(best_rate(cell).usable for cell in edges)


def test_an_axis_of_one_level_stays_as_the_rule_in_use_has_it() -> None:
    cells = [c for c in grid() if c.batch_tokens == 256]
    found = rule_of_runs(cells, STEP_LIMITED)
    assert found.held == ("batch",)
    assert found.rule.batch == STEP_LIMITED.batch
    assert found.interval("batch") is None


def test_axes_that_move_together_are_refused() -> None:
    cells = [valley(512, 250_000), valley(1024, 500_000), valley(2048, 1_000_000)]
    with pytest.raises(TableError, match="n and tokens move together"):
        rule_of_runs(cells, STEP_LIMITED)
    with pytest.raises(TableError, match="move together"):
        rule_of_cells([best_rate(cell) for cell in cells], STEP_LIMITED)


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """Finished runs of the grid, one cell with two seeds, and a run that failed."""
    for cell in grid():
        for lr, log_loss in zip(cell.lr, cell.log_loss, strict=True):
            _write(tmp_path, cell, lr, float(np.exp(log_loss)))
    first = grid()[0]
    for lr, log_loss in zip(first.lr, first.log_loss, strict=True):
        _write(tmp_path, first, lr, float(np.exp(log_loss) * 1.002), seed=1)
    failure = {"type": "OSError", "message": "disk", "traceback": None, "rank": 0}
    _write(tmp_path, first, 1.0, 0.5, status="failed", error=failure)
    return tmp_path


def _write(
    folder: Path,
    cell: Cell,
    lr: float,
    loss: float,
    seed: int = 0,
    dead: float = 0.01,
    **rest: object,
) -> None:
    n, tokens, batch = cell.n_latents, int(cell.tokens), cell.batch_tokens
    row = record(Point(n, cell.k, tokens), loss, lr=float(lr), batch_tokens=batch, seed=seed)
    row |= {"run_id": f"{n}-{tokens}-{batch}-{lr:.6g}-{seed}", **rest}
    row["result"] |= {"dead_fraction": dead, "silent_fraction_eval": dead}
    row["result"] |= {"steps": tokens // batch, "tokens": tokens // batch * batch}
    write_record(folder, row)


def test_cells_of_a_sweep(sweep: Path) -> None:
    cells = read_cells([sweep], "normalized_mse")
    assert len(cells) == 12
    assert [len(cell.lr) for cell in cells] == [3] * 12
    first = cells[0]
    assert (first.n_latents, first.tokens, first.batch_tokens) == (512, 250_000, 256)
    assert list(first.n_seeds) == [2, 2, 2]
    assert first.log_loss == pytest.approx(grid()[0].log_loss + np.log(1.002) / 2)


def test_the_command_prints_the_keys(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    figure = sweep / "valleys.png"
    assert calibrate_command([str(sweep), "--png", str(figure)]) == 0
    said = capsys.readouterr().out
    keys = re.search(r"lr_power: \{lr: (\S+), n: (\S+), tokens: (\S+), batch: (\S+)\}", said)
    assert keys is not None
    found = [float(key) for key in keys.groups()]
    assert found == pytest.approx([TRUE.lr, TRUE.n, TRUE.tokens, TRUE.batch], abs=2e-3)
    assert "Training by step_limited instead costs at most" in said
    assert figure.read_bytes().startswith(b"\x89PNG")
    assert len(figure.read_bytes()) > 20_000


def test_rates_that_kill_latents_are_the_upper_side_of_a_valley(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for cell in grid():
        for place, (lr, log_loss) in enumerate(zip(cell.lr, cell.log_loss, strict=True)):
            _write(tmp_path, cell, lr, float(np.exp(log_loss)), dead=0.6 if place == 2 else 0.02)
    cells = read_cells([tmp_path], "normalized_mse")
    assert [len(cell.lr) for cell in cells] == [3] * 12
    assert list(cells[0].dead) == pytest.approx([0.02, 0.02, 0.6])
    assert calibrate_command([str(tmp_path)]) == 0
    assert "(60% dead)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--spread", "0"], "--spread 0 is no spread"),
        (["--spread", "1e308"], "--spread 1e+308 is no spread"),
        (["--spread", "inf"], "--spread inf is no spread"),
        (["--spread", "nan"], "--spread nan is no spread"),
        (["--png", "nowhere/x.png"], "nowhere/x.png (No such file or directory); give a path"),
        (["--png", "x.svg"], "--png x.svg is not the path of a .png file"),
        (["--png", "x"], "--png x is not the path of a .png file"),
        (["--loss", "mse"], "--loss mse is no held-out loss"),
        (["--loss", "lr"], "--loss lr is no held-out loss"),
        (["--loss", "dead_fraction"], "--loss dead_fraction is no held-out loss"),
    ],
)
def test_bad_input_is_one_sentence(
    sweep: Path,
    arguments: list[str],
    said: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(sweep)  # where a picture would lie that should not be
    assert calibrate_command([str(sweep), *arguments]) == 2
    assert said in capsys.readouterr().err


def test_a_folder_is_no_picture(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (sweep / "pictures.png").mkdir()
    before = sorted(sweep.iterdir())
    for folder in (sweep, sweep / "pictures.png"):
        assert calibrate_command([str(sweep), "--png", str(folder)]) == 2
        assert "is not the path of a .png file" in capsys.readouterr().err
    assert sorted(sweep.iterdir()) == before


def test_a_picture_stays_where_the_disk_takes_no_new_one(
    sweep: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    figure = sweep / "valleys.png"
    figure.write_bytes(b"old")

    def full(self: Path, content: bytes) -> int:
        self.touch()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    assert calibrate_command([str(sweep), "--png", str(figure)]) == 2
    assert "valleys.png (No space left on device)" in capsys.readouterr().err
    assert figure.read_bytes() == b"old"
    assert [path for path in sweep.iterdir() if path.is_file()] == [figure]


@pytest.mark.parametrize(
    ("columns", "values", "said"),
    [
        ("", "", "no column lr, the peak learning rate, for 3 of 3 runs; the first is r0. "),
        (",lr", ",1e-3", "no column batch_tokens, tokens a step, for 3 of 3 runs"),
        (",lr,batch_tokens", ",1e-3,0", "no usable batch_tokens (it is 0), tokens a step"),
        (",lr,batch_tokens", ",0.0,256", "no usable lr (it is 0.0)"),
        (",lr,batch_tokens", ",-0.001,256", "no usable lr (it is -0.001)"),
        (",lr,batch_tokens", ",,256", "no usable lr (it is None)"),
    ],
)
def test_tables_without_rates_or_batches_are_refused(
    tmp_path: Path, columns: str, values: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    table = tmp_path / "hand.csv"
    rows = [f"r{i},512,4,{1000 * (1 + i)},0,0.3{values}\n" for i in range(3)]
    table.write_text(f"run_id,n_latents,k,tokens,seed,normalized_mse{columns}\n" + "".join(rows))
    assert calibrate_command([str(table)]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_too_few_rates_end_without_a_rule(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _write(tmp_path, grid()[0], 1e-3, 0.3)
    assert calibrate_command([str(tmp_path)]) == 2
    captured = capsys.readouterr()
    assert "1 rates; a parabola needs 3" in captured.out
    assert "no rule can be fitted" in captured.err
