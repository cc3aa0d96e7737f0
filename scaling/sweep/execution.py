"""Which engine, kernels and matmul a run gets on this machine: settled once, recorded in the plan.

`auto` takes the fastest that gives the planned result here. What was asked for by name and cannot
be had is an error: nothing falls back silently.
"""

from __future__ import annotations

import time
from functools import cache

import torch

from scaling.autoencoder.init import unit_rows
from scaling.choices import DeviceName, EngineName, KernelsName, Precision
from scaling.config import RunConfig
from scaling.errors import UserError
from scaling.hardware import fingerprint
from scaling.kernels.cpu import MATMULS, CpuKernels, NativeUnavailableError, library_path
from scaling.plan import ExecutionPlan

FUSED = ("cpu", "triton")
"""Kernels that offer the fused engine's passes."""
MEASURED_LATENTS = 4096
MEASURED_TOKENS = 256
MEASURED_REPEATS = 3


def check_execution(config: RunConfig) -> None:
    """Refuse what this machine or the chosen precision does not allow.

    Raises:
        UserError: naming the key, its value and the remedy.
    """
    device, kernels = _device(config), _kernels(config)
    precision = config.numerics.precision
    if kernels == "cpu":
        _check_native(device, precision)
    if kernels == "triton" and (device != "cuda" or precision is Precision.float64):
        raise UserError(
            f"kernels=triton with device={device} and numerics.precision={precision}: it needs "
            "device=cuda and float32 or bf16. Use kernels=auto."
        )
    if kernels not in FUSED and precision is Precision.bf16:
        raise UserError(
            f"numerics.precision=bf16 needs kernels=cpu or kernels=triton, not kernels={kernels}. "
            "Leave kernels=auto, or set numerics.precision=float32."
        )
    if config.engine is EngineName.fused and kernels not in FUSED:
        raise UserError(
            f"engine=fused needs kernels=cpu or kernels=triton, not kernels={kernels} (precision "
            f"{precision} on {device}). Use engine=auto."
        )


def plan_execution(config: RunConfig, d_model: int) -> ExecutionPlan:
    """Settle how a checked config is computed here."""
    check_execution(config)
    device, kernels = _device(config), _kernels(config)
    engine = "fused" if kernels in FUSED else "torch"
    return ExecutionPlan(
        engine=engine if config.engine is EngineName.auto else str(config.engine),
        kernels=kernels,
        matmul=_matmul(config, kernels, d_model),
        device=device,
        threads=config.launcher.threads,
        fingerprint=fingerprint(device),
    )


def native_problem() -> str | None:
    """Why there are no native CPU kernels here; None if there are."""
    try:
        library_path()
    except NativeUnavailableError as error:
        return str(error)
    return None


def _device(config: RunConfig) -> str:
    available = torch.cuda.is_available()
    if config.device is DeviceName.cuda and not available:
        raise UserError("device=cuda, but torch sees no CUDA device. Set device=cpu or auto.")
    return "cuda" if available and config.device is not DeviceName.cpu else "cpu"


def _kernels(config: RunConfig) -> str:
    if config.kernels is not KernelsName.auto:
        return str(config.kernels)
    if config.numerics.precision is Precision.float64:
        return "torch"
    if _device(config) == "cuda":
        return "triton"
    return "torch" if native_problem() else "cpu"


def _check_native(device: str, precision: Precision) -> None:
    if device != "cpu" or precision is Precision.float64:
        raise UserError(
            f"kernels=cpu with device={device} and numerics.precision={precision}: it needs "
            "device=cpu and float32 or bf16. Use kernels=auto."
        )
    if problem := native_problem():
        raise UserError(f"kernels=cpu cannot be had: {problem}.")


def _matmul(config: RunConfig, kernels: str, d_model: int) -> str:
    precision = str(config.numerics.precision)
    if kernels != "cpu" or precision == "bf16":
        return precision
    n_latents = min(config.autoencoder.n_latents, MEASURED_LATENTS)
    k = min(config.autoencoder.k, n_latents)
    tokens = min(config.train.batch_tokens, MEASURED_TOKENS)
    return fastest_matmul(n_latents, d_model, k, tokens, config.launcher.threads)


@cache
def fastest_matmul(n_latents: int, d_model: int, k: int, n_tokens: int, threads: int) -> str:
    """Which of the CPU kernels' exact matmuls selects soonest, measured on random vectors."""
    torch.set_num_threads(threads)
    exact = [name for name in MATMULS if name != "bf16"]
    return min(exact, key=lambda name: _selection_s(name, n_latents, d_model, k, n_tokens))


def _selection_s(matmul: str, n_latents: int, d_model: int, k: int, n_tokens: int) -> float:
    kernels = CpuKernels(matmul)
    rows_ND = unit_rows(n_latents, d_model, seed=0, stream=0)
    tokens_BD = unit_rows(n_tokens, d_model, seed=0, stream=1)
    shadow, bias_N = kernels.make_shadow(rows_ND, rows_ND), torch.zeros(n_latents)
    times_s = []
    for _ in range(MEASURED_REPEATS + 1):  # the first warms up
        started_s = time.perf_counter()
        kernels.select(tokens_BD, rows_ND, bias_N, k, shadow)
        times_s.append(time.perf_counter() - started_s)
    return min(times_s[1:])
