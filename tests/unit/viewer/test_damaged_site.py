"""A viewer of what is damaged or half written says so in a line; a site is whole or not there."""

from __future__ import annotations

import json
import shutil
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from scaling import view
from scaling.errors import UserError
from scaling.runs.store import RunFolder
from scaling.viewer import site
from scaling.viewer.known import read_known
from scaling.viewer.measured import Measured, Pages
from tests.unit.evaluation.test_damaged import resealed

N = 4
ALL = {name: Measured(name, {}, "", "") for name in ("density", "ablation", "explain")}


def density(folder: Path, **changes: Any) -> None:
    layout = np.zeros((N, 2), np.float32)
    arrays = {"frequency": np.zeros(N, np.float32), "layout": layout, **changes}
    np.savez(folder / "density.npz", **arrays)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    "changes",
    [
        {"layout": np.zeros(N, np.float32)},
        {"layout": np.zeros((N, 3), np.float32)},
        {"frequency": np.zeros((N, 2))},
        {"frequency": np.array(["a"] * N)},
    ],
)
def test_arrays_of_another_shape_are_refused(tmp_path: Path, changes: dict[str, Any]) -> None:
    density(tmp_path)
    assert read_known(tmp_path, N, ALL).layout_N2 is not None
    density(tmp_path, **changes)
    with pytest.raises(UserError, match=r"cannot be read .*density\.npz"):
        read_known(tmp_path, N, ALL)


def test_any_byte_that_is_wrong_is_refused_or_of_no_account(tmp_path: Path) -> None:
    frequency = np.random.default_rng(0).random(N, np.float32)
    np.savez_compressed(tmp_path / "density.npz", frequency=frequency)
    whole = (tmp_path / "density.npz").read_bytes()
    refused = 0
    for place in range(len(whole)):
        damaged = bytearray(whole)
        damaged[place] ^= 0xA5
        (tmp_path / "density.npz").write_bytes(damaged)
        try:
            read_known(tmp_path, N, ALL)
        except UserError:
            refused += 1
    assert refused > len(whole) // 2


def test_an_empty_file_of_arrays_is_refused(tmp_path: Path) -> None:
    (tmp_path / "density.npz").touch()
    with pytest.raises(UserError, match=r"evaluation\.json beside it"):
        read_known(tmp_path, N, ALL)


@pytest.mark.parametrize(
    "content",
    ["[]", '{"3": {}}', '{"3": {"patterns": 3}}', '{"-3": {"patterns": [], "precision": 0.5}}',
     '{"3": {"patterns": [{"tokens": "<script>", "value": 1.0}]}}',
     '{"3": {"patterns": [{"tokens": [1, null], "value": NaN}]}}',
     '{"3": {"patterns": [{"tokens": [1, null], "value": "x"}]}}'],
)  # fmt: skip
def test_patterns_that_no_page_can_show_are_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "n2g.json").write_text(content)
    with pytest.raises(UserError, match="cannot be read"):
        read_known(tmp_path, N, ALL)


def written(folder: Path, identity: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A site without latents."""
    with monkeypatch.context() as patch:
        patch.setattr(site, "_scripts", lambda *_: iter(()))
        site.write_site(folder, None, {}, identity)  # type: ignore[arg-type]


def test_a_site_killed_while_it_was_replaced_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "viewer"
    written(folder, "old", monkeypatch)

    class Killed(BaseException):
        pass

    def killed(path: Path, *_: object, **__: object) -> None:
        (path / site.MARK).unlink()
        raise Killed

    # Before, what was left of the old one was taken for somebody else's and refused ever after.
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", killed)
        with pytest.raises(Killed):
            written(folder, "new", monkeypatch)
    site.check_target(folder)
    written(folder, "newer", monkeypatch)
    assert site.is_made(folder, "newer")
    assert [path.name for path in tmp_path.iterdir()] == ["viewer"]


def test_a_site_that_cannot_be_replaced_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "viewer"
    written(folder, "old", monkeypatch)

    def full(*_: object) -> None:
        raise UserError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr("scaling.storage.atomic.commit_folder", full)
        with pytest.raises(UserError, match="full"):
            written(folder, "new", monkeypatch)
    assert site.is_made(folder, "old")


def test_a_port_that_is_taken_is_told_before_anything_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(view, "_make", lambda *_: pytest.fail("was made"))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        assert view.main([str(tmp_path), "--out", str(tmp_path / "new"), "--serve", port]) == 2
    assert "Take another port" in capsys.readouterr().err
    assert view.main([str(tmp_path), "--out", str(tmp_path / "new"), "--serve", "99999"]) == 2


def test_what_a_run_cannot_say_is_told_or_left_out(
    finished: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    record = json.loads(finished.record_path.read_text())
    content = {"metrics": {"density": {"columns": ["gone"], "weights": "raw"}}, "kept": 1.0}
    finished.evaluation_path.write_text(json.dumps(content))
    record["result"]["normalized_mse"] = float("nan")
    finished.record_path.write_text(json.dumps(record))
    plan = view.run_weights.plan_of(finished)
    shown = view._run(finished, plan, averaged=False)
    json.dumps(shown, allow_nan=False)
    assert "steps" in shown["record"][-1]["numbers"]
    assert "normalized_mse" not in shown["record"][0]["numbers"]
    evaluated = view._evaluated(finished, "raw", Pages(4, is_all=False, settings={}))
    assert view._evaluation(evaluated) == []
    for change in ({"status": "running"}, {"status": "planned", "result": None}):
        finished.record_path.write_text(json.dumps(record | change))
        assert view.main([str(finished.path)]) == 2
        assert "only a run that is done" in capsys.readouterr().err
    assert view.main([str(finished.path), "--out", "/proc/none/site"]) == 2


def test_a_site_that_another_process_writes_is_left_to_it(
    finished: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [str(finished.path), "contexts=2"]
    with view._alone(finished.path / "viewer"):
        assert view.main(arguments) == 2
    assert "another process is writing" in capsys.readouterr().err
    assert view.main(arguments) == 0
    assert not [path.name for path in finished.path.iterdir() if path.name.startswith(".")]


def test_weights_of_another_shape_are_told_in_a_line(
    finished: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    def narrower(tensors: dict[str, torch.Tensor]) -> None:
        tensors["w_dec"] = tensors["w_dec"][:, :3].contiguous()

    path = resealed(finished.path, narrower)
    assert view.main([str(finished.path)]) == 2
    said = capsys.readouterr().err
    assert f"{path}: w_dec is [300, 3], and [300, 16] is wanted" in said
    assert said.count("\n") == 1
