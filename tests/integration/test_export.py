"""One file of weights, whoever wrote them, or a sentence that says why not."""

from __future__ import annotations

import errno
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from scaling import export
from scaling.activations.build import open_source
from scaling.plan import RunPlan
from scaling.runs.record import Status
from scaling.runs.store import RunFolder
from scaling.storage.sealed import read_sealed
from scaling.train import shard_files
from scaling.train.build import build_engine
from scaling.train.checkpoint import Checkpoints, write_tensors
from scaling.train.mesh import ALONE, Mesh
from scaling.train.shard_files import read_tensors
from tests.integration import end_phase
from tests.integration.test_resume import attempt, planned
from tests.ranks import run_threads
from tests.unit.train.states import rows_of

N = 64


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    _, folder = planned(tmp_path_factory.mktemp("done"))
    assert end_phase.take_up(folder)["status"] is Status.done
    return folder


@pytest.fixture
def unfinished(tmp_path: Path) -> RunFolder:
    _, folder = planned(tmp_path)
    assert attempt(folder, stop_after_rows=9).status is Status.preempted
    return folder


def exported(folder: RunFolder, out: Path, *options: str) -> tuple[dict[str, Tensor], Any]:
    assert export.main([str(folder.path), "--out", str(out), *options]) == 0
    assert sorted(path.name for path in out.iterdir()) == ["config.json", "weights.safetensors"]
    return load_file(out / "weights.safetensors"), json.loads((out / "config.json").read_text())


def as_on(mesh: tuple[int, int], folder: Path) -> None:
    """Write the tensors of a folder anew, as if such a mesh had."""
    manifest, tensors = read_tensors(folder)

    def work(here: Mesh) -> None:
        write_tensors(folder, rows_of(tensors, here.local_rows(N)), manifest, N, here)

    run_threads(work, *mesh)
    assert len(read_sealed(folder / "manifest.json")["files"]) == mesh[0] * mesh[1]


@pytest.mark.parametrize("averaged", [False, True])
@pytest.mark.parametrize("mesh", [(1, 1), (2, 2), (1, 4)])
def test_a_done_run_in_one_file(
    tmp_path: Path, done: RunFolder, mesh: tuple[int, int], averaged: bool, monkeypatch: Any
) -> None:
    folder = RunFolder(tmp_path / done.run_id)
    shutil.copytree(done.path, folder.path)
    as_on(mesh, folder.path / "weights")
    monkeypatch.setattr(shard_files, "_BLOCK_BYTES", 1_000)  # some rows at a time
    options = ["--averaged"] if averaged else []
    weights, config = exported(folder, tmp_path / "out", *options)
    _, kept = read_tensors(done.path / "weights")
    suffix = ".ema" if averaged else ""
    assert sorted(weights) == ["b_enc", "b_pre", "w_dec", "w_enc"]
    for name, tensor in weights.items():
        assert torch.equal(tensor, kept[f"{name}{suffix}"])
    assert not torch.equal(kept["w_enc"], kept["w_enc.ema"])
    result = done.read_record().result
    expected = result["normalized_mse_ema" if averaged else "normalized_mse"]
    assert config["normalized_mse"] == expected
    assert config["weights"] == ("averaged" if averaged else "raw")
    assert (config["d_model"], config["n_latents"], config["k"]) == (64, N, 4)
    assert (config["step"], config["tokens"]) == (result["steps"], result["tokens"])
    assert config["run_id"] == done.run_id
    assert config["normalization"] == "none"
    assert config["activations"]["id"] == result["activations_id"]


def test_a_run_that_its_rule_ended_is_of_the_tokens_it_saw(tmp_path: Path) -> None:
    stop = ["train.stop.fall=0.9", "train.stop.after_tokens=1_280", "train.decay_fraction=0"]
    plan, folder = planned(tmp_path, *stop)
    assert end_phase.take_up(folder)["status"] is Status.done
    result = folder.read_record().result
    assert result["steps"] < plan.train.steps
    _, config = exported(folder, tmp_path / "out")
    assert (config["step"], config["tokens"]) == (result["steps"], result["tokens"])
    assert config["normalized_mse"] == result["normalized_mse"]


def test_the_formula_in_the_docs_scores_as_recorded(tmp_path: Path, done: RunFolder) -> None:
    weights, config = exported(done, tmp_path / "out")
    source = open_source(RunPlan.from_json(done.read_plan()).source)
    x_BD = torch.cat(list(source.eval_batches(512)))
    pre_acts_BN = (x_BD - weights["b_pre"]) @ weights["w_enc"].T + weights["b_enc"]
    top = pre_acts_BN.topk(config["k"])
    z_BN = torch.zeros_like(pre_acts_BN).scatter(1, top.indices, top.values.relu())
    error = (x_BD - z_BN @ weights["w_dec"] - weights["b_pre"]).square().sum()
    by_mean = (x_BD - source.calibration.mean_D).square().sum()
    assert float(error / by_mean) == pytest.approx(config["normalized_mse"], rel=1e-5)


def test_an_unfinished_run_by_its_newest_sound_checkpoint(
    tmp_path: Path, unfinished: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = RunPlan.from_json(unfinished.read_plan())
    newest = max(unfinished.checkpoints_path.iterdir())
    as_on((1, 4), newest)
    raw, config = exported(unfinished, tmp_path / "raw", "--checkpoint")
    averaged, _ = exported(unfinished, tmp_path / "averaged", "--checkpoint", "--averaged")
    assert (config["step"], config["normalized_mse"]) == (int(newest.name[5:]), None)
    engine = build_engine(plan, open_source(plan.source))
    found = Checkpoints(unfinished.checkpoints_path, plan.run_id, 2, N, ALONE).load_newest()
    assert found.state is not None
    engine.load_state(found.state)
    for weights, expected in ((raw, engine.weights()), (averaged, engine.weights(averaged=True))):
        assert all(torch.equal(weights[name], expected[name]) for name in expected)
    (newest / "rank_00003.safetensors").unlink()
    capsys.readouterr()
    _, config = exported(unfinished, tmp_path / "older", "--checkpoint")
    assert config["step"] < int(newest.name[5:])
    assert "passed over" in capsys.readouterr().err


def test_a_checkpoint_of_other_shapes_is_passed_over(
    tmp_path: Path, unfinished: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    newest = max(unfinished.checkpoints_path.iterdir())
    manifest, tensors = read_tensors(newest)
    narrower = {**tensors, "w_dec": tensors["w_dec"][:, 1:].contiguous()}
    write_tensors(newest, narrower, manifest, N)
    _, config = exported(unfinished, tmp_path / "older", "--checkpoint")
    assert config["step"] < int(newest.name[5:])
    said = capsys.readouterr().err
    assert "passed over" in said
    assert "w_dec is" in said


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    assert export.main(arguments) == 2
    return capsys.readouterr().err


def test_what_cannot_be_exported_is_explained(
    tmp_path: Path, unfinished: RunFolder, done: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    out = ["--out", str(tmp_path / "out")]
    assert "is not a run" in refused([str(tmp_path), *out], capsys)
    assert "has no weights yet" in refused([str(unfinished.path), *out], capsys)
    assert "no sound checkpoint" in refused([str(done.path), *out, "--checkpoint"], capsys)
    assert "exists already" in refused([str(done.path), "--out", str(tmp_path)], capsys)
    _, plain = planned(tmp_path / "plain", "train.ema_decay=0")
    assert "kept no average" in refused([str(plain.path), *out, "--averaged"], capsys)
    damaged = RunFolder(tmp_path / done.run_id)
    shutil.copytree(done.path, damaged.path)
    path = damaged.path / "weights" / "rank_00000.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    assert "does not match its checksum" in refused([str(damaged.path), *out], capsys)
    (damaged.path / "plan.json").write_text("{}")
    assert "cannot be read" in refused([str(damaged.path), *out], capsys)
    assert not (tmp_path / "out").exists()


def test_where_it_cannot_be_written_is_named(
    tmp_path: Path, done: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    for out in ("/proc/none/out", str(tmp_path / "file" / "out")):
        message = refused([str(done.path), "--out", out], capsys)
        assert message.startswith(f"--out={out} was not written: ")
        assert message.count("\n") == 1


def test_a_plan_that_was_edited_is_named(
    tmp_path: Path, done: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    edited = RunFolder(tmp_path / done.run_id)
    shutil.copytree(done.path, edited.path)
    for description in (7, {}, {"normalization": "cube"}):  # no part of the identity
        plan = done.read_plan()
        plan["source"]["description"] = description
        edited.plan_path.write_text(json.dumps(plan))
        message = refused([str(edited.path), "--out", str(tmp_path / "out")], capsys)
        assert f"{edited.plan_path} cannot be read" in message


def test_a_full_disk_leaves_nothing(
    tmp_path: Path,
    done: RunFolder,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def refuse(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("scaling.train.tensor_file.os.fsync", refuse)
    message = refused([str(done.path), "--out", str(tmp_path / "out")], capsys)
    assert "the disk is full while writing" in message
    assert list(tmp_path.iterdir()) == []


def test_without_out_the_folder_is_named_after_the_run(
    tmp_path: Path, done: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert export.main([str(done.path)]) == 0
    assert export.main([str(done.path), "--averaged"]) == 0
    names = sorted(path.name for path in (tmp_path / "exports").iterdir())
    assert names == [done.run_id, f"{done.run_id}-averaged"]
