"""A run or a file that is damaged costs itself alone, and says what would mend it."""

from __future__ import annotations

import errno
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load

from scaling import evaluate, run_weights
from scaling.errors import UserError
from scaling.evaluation import clusters
from scaling.evaluation.metric import Measured
from scaling.evaluation.results import Results
from scaling.evaluation.tasks import file_task
from scaling.runs.store import RunFolder
from scaling.storage.sealed import read_sealed, write_sealed
from scaling.train.tensor_file import write_tensor_file
from tests.unit.evaluation.conftest import planned, trained

Break = Callable[[Path], object]


def edited(path: Path, change: Callable[[Any], object]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def _is_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def resealed(run: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> Path:
    """Change the tensors of a run so that all checksums are right; gives their file."""
    manifest = read_sealed(run / "weights" / "manifest.json")
    (name,) = manifest["files"]
    path = run / "weights" / name
    tensors = load(path.read_bytes())  # not from a map of the file that is written next
    change(tensors)
    written = write_tensor_file(path, tensors)
    manifest["files"][name] |= {"sha256": written.sha256, "bytes": written.n_bytes}
    write_sealed(run / "weights" / "manifest.json", manifest)
    return path


DAMAGES: dict[str, Break] = {
    "a decoder of another width": lambda run: resealed(
        run, lambda tensors: tensors.update(w_dec=tensors["w_dec"][:, :3].contiguous())
    ),
    "record truncated": lambda run: (run / "record.json").write_text('{"run_id": "'),
    "record a folder": lambda run: _is_folder(run / "record.json"),
    "record without result": lambda run: edited(
        run / "record.json", lambda content: content.update(result=None)
    ),
    "plan a folder": lambda run: _is_folder(run / "plan.json"),
    "plan without config": lambda run: edited(
        run / "plan.json", lambda content: content.pop("config")
    ),
    "plan without activations": lambda run: edited(
        run / "plan.json", lambda content: content["config"].pop("activations")
    ),
    "evaluation.json a folder": lambda run: (run / "evaluation.json").mkdir(),
    "evaluation.json with NaN": lambda run: (run / "evaluation.json").write_text('{"x": NaN}'),
    "evaluation.json with infinity within": lambda run: (run / "evaluation.json").write_text(
        '{"metrics": {"omp": {"columns": [], "notes": {"k": 1e999}}}}'
    ),
    "evaluation a file": lambda run: (run / "evaluation").write_text(""),
}


def test_the_other_run_is_measured(
    finished: RunFolder, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not the weights of the run that is damaged: each has its own line, and no traceback."""
    sweep = finished.path.parent
    as_trained = finished.path.rename(sweep.parent / "as_trained")
    sound, broken = sweep / "sound", sweep / "broken"
    shutil.copytree(as_trained, sound)
    asked: list[str] = []

    def measure(self: Any, run: Any, *_: Any) -> Measured:
        asked.append(run.folder.parent.name)
        return Measured({"density_l0": 1.0})

    monkeypatch.setattr(evaluate.evaluate_runs.METRICS["density"][0], "measure", measure)
    for name, damage in DAMAGES.items():
        shutil.copytree(as_trained, broken)
        damage(broken)
        (sound / "evaluation.json").unlink(missing_ok=True)
        asked.clear()
        assert evaluate.main([str(sweep), "metrics=density", "contexts=4"]) == 1, name
        assert "sound" in asked, name
        assert "broken" not in asked, name
        said = capsys.readouterr()
        assert "Traceback" not in said.err, name
        shutil.rmtree(broken)


def test_a_logger_that_is_null_costs_nothing(finished: RunFolder) -> None:
    assert evaluate._logger_of(finished)
    edited(finished.plan_path, lambda plan: plan["config"].update(logger=None))
    assert evaluate._logger_of(finished) == {}


def test_a_record_without_steps_is_named(finished: RunFolder) -> None:
    edited(finished.record_path, lambda record: record["result"].pop("steps"))
    with pytest.raises(UserError, match=r"record\.json .* after how many steps"):
        run_weights.load_run(finished)


def test_numbers_that_are_gone_are_measured_again(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    Results(folder).put("density", "one", Measured({"density_l0": 3.0}), {})
    assert Results(folder).has("density", "one")
    edited(folder.evaluation_path, lambda content: content.pop("density_l0"))
    results = Results(folder)
    assert not results.has("density", "one")
    results.put("density", "one", Measured({"density_l0": 3.0}), {})
    # The entry lost, the numbers there: nobody else's, so they can be written again.
    edited(folder.evaluation_path, lambda content: content["metrics"].clear())
    Results(folder).put("density", "one", Measured({"density_l0": 4.0}), {})
    assert Results(folder).numbers == {"density_l0": 4.0}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"\xff\xfe\x00", "cannot be read as UTF-8"),
        (b'{"text": "a", "label": 1' + b"1" * 5000 + b"}", "line 1 .* is not JSON"),
        (b"[" * 100_000, "line 1 .* is not JSON"),
        (b'{"text": "\\ud800", "label": 1}', "line 1 .* is not JSON"),
        (b'{"text": "a", "label": 1, "document": [1]}', "line 1 .* must be an object"),
        (b'{"text": "a", "label": 1}\n{"text": "b", "label": 1}', "2 texts .* not of two labels"),
        (b"", "0 texts .* not of two labels"),
    ],
)
def test_tasks_that_cannot_be_read_are_refused_when_named(
    tmp_path: Path, content: bytes, words: str
) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_bytes(content)
    with pytest.raises(UserError, match=words):
        file_task(path)


def test_a_null_document_is_none_and_a_byte_order_mark_no_text(tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    rows = [{"text": text, "label": label, "document": None} for label, text in enumerate("ab")]
    path.write_text("\ufeff" + "\n".join(map(json.dumps, rows)), "utf-8")
    assert [one.document for one in file_task(path).read()] == ["a", "b"]


def test_weights_that_are_not_finite_are_not_measured(
    finished: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No latent of such a run fires, which is not what its density is."""
    read = run_weights.Weights.read

    def diverged(self: run_weights.Weights, *, averaged: bool) -> dict[str, torch.Tensor]:
        weights = read(self, averaged=averaged)
        return {**weights, "w_enc": weights["w_enc"] * math.nan}

    monkeypatch.setattr(run_weights.Weights, "read", diverged)
    with pytest.raises(UserError, match=r"not finite \(w_enc\)"):
        run_weights.load_run(finished)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("w_dec", lambda tensor: tensor[:-1]),
        ("w_dec", lambda tensor: tensor.repeat(2, 1)),  # its first rows were taken before
        ("w_enc", lambda tensor: tensor[:, 1:]),
        ("b_enc", lambda tensor: tensor[:, None]),
        ("b_pre", lambda tensor: tensor[0]),
        ("b_pre.ema", lambda tensor: tensor[1:]),
    ],
)
def test_weights_of_another_shape_are_named(
    finished: RunFolder, name: str, change: Callable[[torch.Tensor], torch.Tensor]
) -> None:
    shapes: list[list[int]] = []

    def other(tensors: dict[str, torch.Tensor]) -> None:
        wanted, tensors[name] = tensors[name], change(tensors[name]).contiguous()
        shapes.extend([list(tensors[name].shape), list(wanted.shape)])

    path = resealed(finished.path, other)
    words = f"{path}: {name} is {shapes[0]}, and {shapes[1]} is wanted. .* restore them"
    with pytest.raises(UserError, match=words.replace("[", r"\[")):
        run_weights.load_run(finished)


def test_weights_that_are_not_there_are_named(finished: RunFolder) -> None:
    resealed(finished.path, lambda tensors: tensors.pop("w_dec"))
    with pytest.raises(UserError, match=r"w_dec.*restore them"):
        run_weights.load_run(finished)


def test_weights_of_another_number_of_latents_are_named(finished: RunFolder) -> None:
    manifest = read_sealed(finished.path / "weights" / "manifest.json")
    (entry,) = manifest["files"].values()
    n_latents, entry["rows"][1], manifest["n_latents"] = manifest["n_latents"], 7, 7
    write_sealed(finished.path / "weights" / "manifest.json", manifest)
    with pytest.raises(UserError, match=f"rows of 7 latents, and the plan is of {n_latents}"):
        run_weights.load_run(finished)


def test_an_average_that_was_not_kept_is_refused(tmp_path: Path) -> None:
    run = trained(planned(tmp_path, "train.ema_decay=0"))
    assert run_weights.load_run(run)
    with pytest.raises(UserError, match="kept no average"):
        run_weights.load_run(run, averaged=True)


def test_what_killed_evaluations_left_is_removed(finished: RunFolder) -> None:
    (finished.path / "evaluation").mkdir(exist_ok=True)
    leftovers = [
        finished.path / ".evaluation.json.1-ab.tmp",
        finished.path / "evaluation" / ".density.npz.1-ab.tmp",
    ]
    others = finished.path / ".wandb.json.1-ab.tmp"
    for path in (*leftovers, others):
        path.touch()
    assert evaluate.main([str(finished.path), "metrics=density", "contexts=4"]) == 0
    assert not any(path.exists() for path in leftovers)
    assert others.exists()


def test_a_quota_or_a_missing_package_costs_one_metric(
    finished: RunFolder, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Any, *_: Any) -> Measured:
        raise OSError(errno.EFBIG, "File too large")

    monkeypatch.setattr(evaluate.evaluate_runs.METRICS["refinement"][0], "measure", full)
    monkeypatch.setattr(clusters.importlib.util, "find_spec", lambda name: None)
    few = ["contexts=4", "metrics=density,refinement,progressive", "density.layout=umap"]
    assert evaluate.main([str(finished.path), *few]) == 1
    said = capsys.readouterr()
    assert "Traceback" not in said.err
    assert "refinement: not measured. [Errno 27] File too large" in said.out
    assert "density: not measured. density.layout=umap needs umap-learn" in said.out
    assert Results(finished).numbers["progressive_half"]
