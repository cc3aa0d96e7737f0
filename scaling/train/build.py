"""From a plan and a source to an engine with initial weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from scaling.activations.source import ActivationSource
from scaling.autoencoder.base import Autoencoder
from scaling.autoencoder.init import geometric_median, initial_weights, scale_encoder_
from scaling.autoencoder.shard import LatentShard
from scaling.budget import INIT_SAMPLE_TOKENS
from scaling.kernels import load_kernels
from scaling.plan import RunPlan
from scaling.train.architectures import build_autoencoder
from scaling.train.engine import Engine
from scaling.train.engine_parts import OptimizerSpec
from scaling.train.fused_engine import FusedEngine
from scaling.train.mesh import ALONE, Mesh
from scaling.train.resample import Resampling
from scaling.train.torch_engine import TorchEngine

DTYPES = {"float32": torch.float32, "float64": torch.float64, "bf16": torch.float32}
"""Of weights, optimizer state and batches, by numerics.precision."""


ENGINES: dict[str, Callable[[Any, OptimizerSpec, int, Mesh], Engine]] = {
    "torch": TorchEngine,
    "fused": FusedEngine,
}


def build_engine(
    plan: RunPlan,
    source: ActivationSource,
    mesh: Mesh = ALONE,
    shard: LatentShard | None = None,
    engines: Mapping[str, Callable[..., Engine]] = ENGINES,
) -> Engine:
    """The planned engine at step 0; a pure function of plan and source, for a rank of `mesh`.

    `shard` is how the latents here meet the others; None = all are here.
    """
    ae, train = plan.autoencoder, plan.train
    weights = initial_weights(
        ae.n_latents,
        mesh.from_leader(_initial_b_pre(ae.b_pre_init, source)),
        tied=ae.encoder_init == "tied",
        seed=train.seed,
        dtype=DTYPES[plan.numerics.precision],
        rows=mesh.local_rows(ae.n_latents),
    )
    model = build_model(plan, weights, source.calibration.mean_predictor_mse, shard)
    if ae.scale_encoder:
        scale_encoder_(model, seed=train.seed)
    return engines[plan.execution.engine](model, optimizer_spec(plan), ae.dead_after_tokens, mesh)


def build_model(
    plan: RunPlan,
    weights: dict[str, Tensor],
    mean_predictor_mse: float,
    shard: LatentShard | None = None,
) -> Autoencoder:
    """The planned autoencoder with these weights, on the planned device."""
    kernels = load_kernels(plan.execution.kernels, plan.execution.matmul)
    on_device = {name: tensor.to(plan.execution.device) for name, tensor in weights.items()}
    return build_autoencoder(plan, kernels, on_device, mean_predictor_mse, shard)


def optimizer_spec(plan: RunPlan) -> OptimizerSpec:
    train, ae = plan.train, plan.autoencoder
    resampling = None
    if ae.resample_every_steps:
        resampling = Resampling(
            every_steps=ae.resample_every_steps,
            until_step=ae.resample_until_step,
            seed=train.seed,
        )
    return OptimizerSpec(
        beta1=train.adam_beta1,
        beta2=train.adam_beta2,
        eps=train.adam_eps,
        clip_norm=train.clip_norm,
        ema_decay=train.ema_decay,
        resampling=resampling,
    )


def _initial_b_pre(name: str, source: ActivationSource) -> Tensor:
    match name:
        case "geometric_median":
            return geometric_median(source.sample(INIT_SAMPLE_TOKENS))
        case "mean":
            return source.sample(INIT_SAMPLE_TOKENS).mean(dim=0)
        case "zero":
            return torch.zeros(source.spec.d_model)
        case _:
            raise ValueError(f"autoencoder.b_pre_init={name} is unknown")
