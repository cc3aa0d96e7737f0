"""What computes a run: chosen once, recorded, and refused by name where it cannot be had."""

from __future__ import annotations

import pytest

from scaling.errors import UserError
from scaling.kernels.cpu import MATMULS, NativeUnavailableError
from scaling.plan import ExecutionPlan
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
        raise NativeUnavailableError("no C++ compiler: install g++, or use kernels=torch")

    monkeypatch.setattr(execution, "library_path", missing)


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
        ("numerics.precision=bf16", "numerics.precision=bf16 needs kernels=cpu"),
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
    monkeypatch.setattr(execution, "fingerprint", lambda device: device)
    found = execution.plan_execution(tiny("numerics.precision=bf16"), d_model=16)
    assert (found.engine, found.kernels, found.matmul) == ("fused", "triton", "bf16")
    with pytest.raises(UserError, match="kernels=cpu with device=cuda"):
        execution.check_execution(tiny("kernels=cpu"))


def test_the_choice_of_matmul_is_the_fastest_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    times_s = {"float32": 3.0, "onednn": 1.0, "certified": 2.0, "bf16": 0.5}
    monkeypatch.setattr(execution, "_selection_s", lambda name, *_: times_s[name])
    execution.fastest_matmul.cache_clear()
    assert execution.fastest_matmul(64, 16, 4, 32, 1) == "onednn"
    execution.fastest_matmul.cache_clear()
