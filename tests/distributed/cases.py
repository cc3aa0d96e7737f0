"""One small training run that has everything in it: dead latents, clipping, averages, a hot shard.

All meshes and engines train it; what they come to is compared with the plain engine on one process.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from scaling.autoencoder import TopKAutoencoder, TopKSpec
from scaling.autoencoder.init import initial_weights
from scaling.autoencoder.shard import LatentShard, Unsharded
from scaling.kernels import load_kernels
from scaling.train.engine import Engine, StepStats
from scaling.train.engine_parts import OptimizerSpec
from scaling.train.fused_engine import FusedEngine
from scaling.train.mesh import ALONE, Mesh
from scaling.train.torch_engine import TorchEngine

D, N, K, B = 36, 192, 8, 64
STEPS, LR = 20, 3e-4
DEAD_AFTER = 4 * B
OPTIMIZER = OptimizerSpec(beta1=0.9, beta2=0.999, eps=6.25e-10, clip_norm=0.05, ema_decay=0.9)
DTYPES = {"float32": torch.float32, "float64": torch.float64}
PER_LATENT = ("w_enc", "w_dec", "b_enc", "tokens_since_fired")


@dataclass(frozen=True)
class Case:
    engine: str = "torch"
    dtype: str = "float32"
    exchange: str = "gather"
    steps: int = STEPS
    zero_stage: int = 1
    clip: float | None = 0.05


def batch(step: int, dtype: torch.dtype) -> Tensor:
    """Planted directions and noise; uneven, so that latents die."""
    generator = torch.Generator().manual_seed(1000 + step)
    planted = torch.nn.functional.normalize(
        torch.randn(64, D, generator=torch.Generator().manual_seed(7)), dim=1
    )
    codes = torch.zeros(B, 64)
    ids = torch.randint(0, 64, (B, 5), generator=generator)
    codes.scatter_(1, ids, torch.rand(B, 5, generator=generator) + 0.5)
    noise = 0.05 * torch.randn(B, D, generator=generator)
    return (codes @ planted + noise).to(dtype)


def weights(rows: range, dtype: torch.dtype) -> dict[str, Tensor]:
    """The first eighth of the latents has a large bias: most of the k largest are there."""
    b_pre = torch.linspace(-0.1, 0.1, D)
    made = initial_weights(N, b_pre, tied=True, seed=0, dtype=dtype, rows=rows)
    hot = torch.arange(N) < N // 8
    made["b_enc"] += torch.where(hot, 0.6, 0.0)[rows.start : rows.stop].to(dtype)
    return made


def make_engine(case: Case, mesh: Mesh = ALONE, shard: LatentShard | None = None) -> Engine:
    dtype = DTYPES[case.dtype]
    spec = TopKSpec(d_model=D, n_latents=N, k=K, k_aux=16, aux_coef=1 / 32, mean_predictor_mse=0.05)
    kernels = load_kernels("cpu" if case.engine == "fused" else "torch")
    model = TopKAutoencoder(spec, kernels, weights(mesh.local_rows(N), dtype), shard)
    optimizer = OptimizerSpec(**{**vars(OPTIMIZER), "clip_norm": case.clip})
    match case.engine:
        case "torch":
            return TorchEngine(model, optimizer, DEAD_AFTER, mesh)
        case "fused":
            return FusedEngine(model, optimizer, DEAD_AFTER, mesh)
    from scaling.distributed.deepspeed_engine import DeepSpeedEngine

    return DeepSpeedEngine(
        model,
        optimizer,
        DEAD_AFTER,
        mesh,  # type: ignore[arg-type]
        microbatch_tokens=B // mesh.dp.size,
        zero_stage=case.zero_stage,
    )


def part(mesh: Mesh, step: int, dtype: torch.dtype) -> Tensor:
    return batch(step, dtype).chunk(mesh.dp.size)[mesh.dp.index]


def train(engine: Engine, case: Case, mesh: Mesh = ALONE) -> dict[str, Any]:
    """What is compared: curves, final state, averaged weights, the code of a batch."""
    dtype = DTYPES[case.dtype]
    stats = [engine.step(part(mesh, step, dtype), LR, measure=True) for step in range(case.steps)]
    active, recon = engine.scorer().reconstruct(batch(99, dtype))
    return {
        "curves": curves(stats),
        "dead": [one.dead_fraction for one in stats],
        "state": engine.state(),
        "averaged": engine.weights(averaged=True),
        "recon": recon.detach(),
        "code": (active.values_BK.detach(), active.indices_BK),
    }


def curves(stats: list[StepStats]) -> dict[str, Tensor]:
    names = ("loss", "normalized_mse", "aux_loss", "grad_norm")
    return {
        name: torch.stack([torch.as_tensor(getattr(one, name)).double() for one in stats])
        for name in names
    }


def on_rank(mesh: Mesh, case: Case) -> dict[str, Any]:
    from scaling.distributed.latent import MeshShard

    shard = MeshShard(mesh, N, exchange=case.exchange)
    return train(make_engine(case, mesh, shard), case, mesh)


def alone(case: Case) -> dict[str, Any]:
    return train(make_engine(case, ALONE, Unsharded()), case)


def is_per_latent(name: str) -> bool:
    return name.split(".")[0] in PER_LATENT and not name.endswith(".step")


def whole(results: list[dict[str, Any]], dp: int, latent: int, key: str) -> dict[str, Tensor]:
    """The tensors of all latents, from the shards of the first replica."""
    shards = [results[j][key] for j in range(latent)]
    return {
        name: torch.cat([shard[name] for shard in shards]) if is_per_latent(name) else tensor
        for name, tensor in shards[0].items()
    }


def difference(found: Tensor, expected: Tensor) -> float:
    """Largest difference over largest value."""
    scale = expected.double().abs().max().clamp_min(1e-30)
    return float((found.double() - expected.double()).abs().max() / scale)
