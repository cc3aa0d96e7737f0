"""What computes a run: chosen once, recorded, and refused by name where it cannot be had."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from scaling.errors import UserError
from scaling.kernels.cpu import MATMULS, NativeUnavailableError
from scaling.plan import ExecutionPlan
from scaling.runs.store import RunFolder
from scaling.sweep import execution
from tests.compose import tiny


def planned(*overrides: str) -> ExecutionPlan:
    return execution.plan_execution(tiny("device=cpu", *overrides), d_model=16)


def test_auto_takes_the_fused_engine_on_native_kernels() -> None:
    found = planned()
    assert (found.engine, found.kernels) == ("fused", "cpu")
    assert found.matmul in set(MATMULS) - {"bf16"}  # of those with the same result


def test_float64_is_computed_by_torch() -> None:
    found = planned("numerics.precision=float64")
    assert (found.engine, found.kernels, found.matmul) == ("torch", "torch", "float64")


def test_bf16_is_what_was_asked_for() -> None:
    assert planned("numerics.precision=bf16").matmul == "bf16"


def test_autograd_may_run_on_native_kernels() -> None:
    found = planned("engine=torch")
    assert (found.engine, found.kernels) == ("torch", "cpu")


@pytest.fixture
def without_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> None:
        raise NativeUnavailableError("no C++ compiler: install g++")

    monkeypatch.setattr(execution, "native_library", missing)


@pytest.mark.usefixtures("without_compiler")
def test_auto_without_a_compiler_takes_torch_and_can_say_why() -> None:
    found = planned()
    assert (found.engine, found.kernels) == ("torch", "torch")
    assert "install g++" in str(execution.native_problem())


@pytest.mark.usefixtures("without_compiler")
@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("kernels=cpu", "kernels=cpu cannot be had: no C\\+\\+ compiler: install g\\+\\+"),
        ("engine=fused", "engine=fused needs kernels=cpu or kernels=triton, not kernels=torch"),
        ("numerics.precision=bf16", "needs kernels=cpu .* not kernels=torch \\(no C\\+\\+ comp"),
    ],
)
def test_what_needs_a_compiler_is_refused_without(override: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        execution.check_execution(tiny("device=cpu", override))


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["kernels=triton"], "kernels=triton with device=cpu"),
        (["kernels=cpu", "numerics.precision=float64"], "kernels=cpu with device=cpu and numerics"),
        (["kernels=torch", "numerics.precision=bf16"], "not kernels=torch"),
        (["kernels=torch", "engine=fused"], "engine=fused needs"),
        (["numerics.precision=float64", "engine=fused"], "engine=fused needs"),
    ],
)
def test_combinations_that_do_not_exist_are_refused(overrides: list[str], words: str) -> None:
    with pytest.raises(UserError, match=words):
        execution.check_execution(tiny("device=cpu", *overrides))


def test_no_cuda_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(execution.torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="device=cuda, but torch sees no CUDA device"):
        execution.check_execution(tiny("device=cuda"))


def test_a_gpu_gets_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(execution.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(execution, "fingerprint", lambda device, kernels: device)
    found = execution.plan_execution(tiny("numerics.precision=bf16"), d_model=16)
    assert (found.engine, found.kernels, found.matmul) == ("fused", "triton", "bf16")
    with pytest.raises(UserError, match="kernels=cpu with device=cuda"):
        execution.check_execution(tiny("kernels=cpu"))


def test_the_choice_of_matmul_is_the_fastest_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    times_s = {"float32": 3.0, "onednn": 1.0, "certified": 2.0, "bf16": 0.5}
    monkeypatch.setattr(execution, "_selection_s", lambda name, *_: times_s[name])
    execution.fastest_matmul.cache_clear()
    assert execution.fastest_matmul(16, 32, 1) == "onednn"
    execution.fastest_matmul.cache_clear()


def test_one_choice_for_all_sizes_of_a_sweep() -> None:
    chosen = {planned(f"autoencoder.n_latents={n}", "autoencoder.k=2").matmul for n in (32, 64, 99)}
    assert len(chosen) == 1


def test_measuring_leaves_the_threads_as_they_were() -> None:
    before = torch.get_num_threads()
    execution.fastest_matmul.cache_clear()
    execution.fastest_matmul(16, 8, before + 1)
    assert torch.get_num_threads() == before


@pytest.mark.usefixtures("without_compiler")
def test_a_run_begun_with_a_compiler_is_not_resumed_without(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "abc")
    execution.check_kept(folder)  # not begun: nothing is kept
    folder.path.mkdir()
    kept = {"execution": {"kernels": "cpu", "device": "cpu"}}
    folder.plan_path.write_text(json.dumps(kept))
    with pytest.raises(UserError, match="run abc was begun with device=cpu and kernels=cpu"):
        execution.check_kept(folder)
    folder.plan_path.write_text(json.dumps({"execution": {"kernels": "torch", "device": "cpu"}}))
    execution.check_kept(folder)


@pytest.mark.parametrize("wrong", [{"kernels": "numba"}, {"kernels": "cpu", "matmul": "fp8"}])
def test_a_kept_plan_that_names_nothing_known_is_refused(
    wrong: dict[str, str], tmp_path: Path
) -> None:
    folder = RunFolder(tmp_path / "abc")
    folder.path.mkdir()
    folder.plan_path.write_text(json.dumps({"execution": {"device": "cpu", **wrong}}))
    with pytest.raises(UserError, match="which do not exist"):
        execution.check_kept(folder)
