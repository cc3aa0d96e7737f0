"""Which engine, kernels and matmul a run gets on this machine: settled once, recorded in the plan.

`auto` takes the fastest that gives the planned result here. What was asked for by name and cannot
be had is an error: nothing falls back silently.
"""

from __future__ import annotations

import time
from functools import cache

import torch

from scaling.autoencoder.init import unit_rows
from scaling.autoencoder_config import (
    AutoencoderConfig,
    TopKConfig,
    has_dense_code,
    k_of,
    name_of,
)
from scaling.budget import choose_exchange
from scaling.choices import (
    DeadTreatment,
    DeviceName,
    EngineName,
    ExchangeName,
    KernelsName,
    LauncherName,
    Precision,
)
from scaling.config import RunConfig
from scaling.errors import UserError
from scaling.hardware import fingerprint
from scaling.kernels.cpu import (
    MATMULS,
    CpuKernels,
    NativeUnavailableError,
    native_library,
)
from scaling.kernels.interface import BACKENDS
from scaling.launcher_config import SlurmLauncherConfig
from scaling.plan import ExecutionPlan
from scaling.runs.store import RunFolder

FUSED = ("cpu", "triton")
"""Kernels that offer the fused engine's passes."""
MEASURED_LATENTS = 4096
MEASURED_K = 32
MEASURED_TOKENS_PER_THREAD = 1024
MEASURED_REPEATS = 3


def check_execution(config: RunConfig) -> None:
    """Refuse what this machine or the chosen precision does not allow.

    Raises:
        UserError: naming the key, its value and the remedy.
    """
    device, kernels = planned_device(config), _kernels(config)
    precision = config.numerics.precision
    if kernels == "cpu":
        _check_native(device, precision)
    if kernels == "triton" and (device != "cuda" or precision is Precision.float64):
        raise UserError(
            f"kernels=triton with device={device} and numerics.precision={precision}: it needs "
            "device=cuda, on a machine with a GPU, and float32 or bf16. Use kernels=auto."
        )
    if kernels not in FUSED and precision is Precision.bf16:
        why = f" ({native_problem()})" if config.kernels is KernelsName.auto else ""
        raise UserError(
            f"numerics.precision=bf16 needs kernels=cpu or kernels=triton, not kernels={kernels}"
            f"{why}. Choose such kernels, or set numerics.precision=float32."
        )
    _check_engine_on_mesh(config)
    _check_gpus(config, device)
    if config.engine is EngineName.fused and kernels not in FUSED:
        problem = native_problem() if device == "cpu" else None
        raise UserError(
            f"engine=fused needs kernels=cpu or kernels=triton, not kernels={kernels} (precision "
            f"{precision} on {device}{'; ' + problem if problem else ''}). Use engine=auto, or "
            "kernels=auto with numerics.precision=float32 or bf16."
        )


def _check_engine_on_mesh(config: RunConfig) -> None:
    dp, engine = config.mesh.dp, config.engine
    others = (EngineName.fused, EngineName.deepspeed)
    if engine in others and not is_plain_topk(config.autoencoder):
        raise UserError(
            f"engine={engine} with autoencoder={name_of(config.autoencoder)}: it trains TopK with "
            "b_enc, decoder_norm, gradient_projection and AuxK, nothing else. Use engine=auto."
        )
    if engine is EngineName.fused and dp > 1:
        raise UserError(
            f"engine=fused with mesh.dp={dp}: it trains one replica, whose latents may be sharded. "
            "Use engine=auto, or mesh.dp=1."
        )
    if engine is EngineName.deepspeed and config.numerics.precision is Precision.float64:
        raise UserError(
            "engine=deepspeed with numerics.precision=float64: DeepSpeed has no float64. Use "
            "engine=torch."
        )


def _check_gpus(config: RunConfig, device: str) -> None:
    """Processes may share cores, but not a GPU: NCCL refuses."""
    mesh, local = config.mesh, config.launcher.name is LauncherName.local
    ranks, gpus = mesh.dp * mesh.latent, torch.cuda.device_count()
    if local and device == "cuda" and ranks > max(1, gpus):
        raise UserError(
            f"mesh.dp={mesh.dp} mesh.latent={mesh.latent} needs {ranks} GPUs, one per process, and "
            f"this machine has {gpus}. Lower them, or use launcher=slurm or launcher=deepspeed for "
            "several machines."
        )


def plan_execution(config: RunConfig, d_model: int) -> ExecutionPlan:
    """Settle how a checked config is computed here."""
    check_execution(config)
    device, kernels = planned_device(config), _kernels(config)
    engine = _engine(config, kernels)
    return ExecutionPlan(
        engine=engine,
        kernels=kernels,
        matmul=_matmul(config, kernels, d_model),
        device=device,
        threads=config.launcher.threads,
        fingerprint=_fingerprint(config, device, kernels),
        exchange=planned_exchange(config),
        zero_stage=config.mesh.zero_stage if engine == "deepspeed" else 0,
    )


def _fingerprint(config: RunConfig, device: str, kernels: str) -> str:
    """Of this machine, where it has what the runs will compute on."""
    if device == "cuda" and not torch.cuda.is_available():
        return f"a GPU reached by launcher={config.launcher.name}"
    return fingerprint(device, kernels)


def check_kept(folder: RunFolder, *, here: bool = True) -> None:
    """A run that was begun goes on as it was begun; refuse it where that cannot be had.

    `here` says whether this machine is the one to compute.

    Raises:
        UserError: naming the run and the remedy.
    """
    if not folder.plan_path.exists():
        return
    kept = folder.read_plan().get("execution", {})
    if kept.get("kernels", "torch") not in BACKENDS or (
        kept.get("kernels") == "cpu" and kept.get("matmul", "float32") not in MATMULS
    ):
        raise UserError(
            f"{folder.plan_path} names kernels={kept['kernels']}, matmul={kept.get('matmul')}, "
            f"which do not exist. Move {folder.path} away to have the run planned anew."
        )
    if not here:
        return
    problem = native_problem() if kept.get("kernels") == "cpu" else None
    if kept.get("device") == "cuda" and not torch.cuda.is_available():
        problem = "torch sees no CUDA device"
    if problem:
        raise UserError(
            f"run {folder.run_id} was begun with device={kept['device']} and "
            f"kernels={kept['kernels']}, which cannot be had here: {problem}. Go on where it can, "
            f"or move {folder.path} away to have the run done again."
        )


def native_problem() -> str | None:
    """Why there are no native CPU kernels here; None if there are."""
    try:
        native_library()
    except NativeUnavailableError as error:
        return str(error)
    return None


def planned_device(config: RunConfig) -> str:
    """cpu or cuda; where the runs compute, which a launch onto other machines may not see.

    Raises:
        UserError: device=cuda, and this machine, which is to compute, has none.
    """
    launcher, available = config.launcher, torch.cuda.is_available()
    if isinstance(launcher, SlurmLauncherConfig) and config.device is DeviceName.auto:
        return "cuda" if launcher.gpus_per_node else "cpu"
    if config.device is DeviceName.cuda and launcher.name is not LauncherName.local:
        return "cuda"
    if config.device is DeviceName.cuda and not available:
        raise UserError("device=cuda, but torch sees no CUDA device. Set device=cpu or auto.")
    return "cuda" if available and config.device is not DeviceName.cpu else "cpu"


def planned_engine(config: RunConfig) -> str:
    """fused, torch or deepspeed."""
    return _engine(config, _kernels(config))


def _kernels(config: RunConfig) -> str:
    if config.kernels is not KernelsName.auto:
        return str(config.kernels)
    if config.numerics.precision is Precision.float64 or has_dense_code(config.autoencoder):
        return "torch"  # a code with a value for each latent asks nothing of the kernels
    if planned_device(config) == "cuda":
        return "triton"
    return "torch" if native_problem() else "cpu"


def _engine(config: RunConfig, kernels: str) -> str:
    """The fastest engine that the mesh allows."""
    if config.engine is not EngineName.auto:
        return str(config.engine)
    if not is_plain_topk(config.autoencoder):
        return "torch"
    if config.mesh.dp > 1:
        return "torch" if config.numerics.precision is Precision.float64 else "deepspeed"
    return "fused" if kernels in FUSED else "torch"


def is_plain_topk(ae: AutoencoderConfig) -> bool:
    """Whether it is what the fused kernels and DeepSpeed's engine step: TopK as published."""
    as_published = ae.b_enc and ae.decoder_norm and ae.gradient_projection
    by_gradient = ae.dead_treatment in (DeadTreatment.auxk, DeadTreatment.none)
    return type(ae) is TopKConfig and as_published and by_gradient


def planned_exchange(config: RunConfig) -> str:
    """How shards agree on the k largest."""
    mesh, ae = config.mesh, config.autoencoder
    if mesh.exchange is not ExchangeName.auto:
        return str(mesh.exchange)
    if (k := k_of(ae)) is None:
        return str(ExchangeName.gather)  # nothing is selected among shards
    return choose_exchange(k, ae.n_latents // mesh.latent, mesh.latent)


def _check_native(device: str, precision: Precision) -> None:
    if device != "cpu" or precision is Precision.float64:
        raise UserError(
            f"kernels=cpu with device={device} and numerics.precision={precision}: it needs "
            "device=cpu and float32 or bf16. Use kernels=auto."
        )
    if problem := native_problem():
        raise UserError(f"kernels=cpu cannot be had: {problem}; or use kernels=torch.")


def _matmul(config: RunConfig, kernels: str, d_model: int) -> str:
    precision = str(config.numerics.precision)
    if kernels != "cpu" or precision == "bf16":
        return precision
    threads = config.launcher.threads
    tokens = min(config.train.batch_tokens, MEASURED_TOKENS_PER_THREAD * threads)
    return fastest_matmul(d_model, tokens, threads)


@cache
def fastest_matmul(d_model: int, n_tokens: int, threads: int) -> str:
    """Which of the CPU kernels' exact matmuls selects soonest, measured on random vectors.

    One choice for all sizes of a sweep, so that its runs differ in nothing else.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        return min(_exact_matmuls(), key=lambda name: _selection_s(name, d_model, n_tokens))
    finally:
        torch.set_num_threads(before)


def _exact_matmuls() -> list[str]:
    """Those with the result of float32 that this build of torch has."""
    absent = ("bf16",) if torch.backends.mkldnn.is_available() else ("bf16", "onednn")
    return [name for name in MATMULS if name not in absent]


def _selection_s(matmul: str, d_model: int, n_tokens: int) -> float:
    kernels = CpuKernels(matmul)
    rows_ND = unit_rows(MEASURED_LATENTS, d_model, seed=0, stream=0)
    tokens_BD = unit_rows(n_tokens, d_model, seed=0, stream=1)
    shadow, bias_N = kernels.make_shadow(rows_ND, rows_ND), torch.zeros(MEASURED_LATENTS)
    times_s = []
    for _ in range(MEASURED_REPEATS + 1):  # the first warms up
        started_s = time.perf_counter()
        kernels.select(tokens_BD, rows_ND, bias_N, MEASURED_K, shadow)
        times_s.append(time.perf_counter() - started_s)
    return min(times_s[1:])
