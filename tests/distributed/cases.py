"""One small training run that has everything in it: dead latents, clipping, averages, a hot shard.

All meshes and engines train it; what they come to is compared with the plain engine on one process.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from scaling.autoencoder import TopKAutoencoder, TopKSpec
from scaling.autoencoder.init import initial_weights
from scaling.autoencoder.shard import LatentShard, Unsharded
from scaling.distributed.latent import MeshShard
from scaling.kernels import Active, load_kernels
from scaling.train.engine import Engine, StepStats
from scaling.train.engine_parts import OptimizerSpec
from scaling.train.evaluate import Evaluation, evaluate
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
    ema: float = 0.9
    matmul: str = "float32"
    """Of the CPU's kernels; other than float32 makes every engine use them."""
    resumed_at: int | None = None
    """A step before which the state goes into a new engine."""


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
    ours = case.engine == "fused" or case.matmul != "float32"
    kernels = load_kernels("cpu", case.matmul) if ours else load_kernels("torch")
    model = TopKAutoencoder(spec, kernels, weights(mesh.local_rows(N), dtype), shard)
    optimizer = OptimizerSpec(**{**vars(OPTIMIZER), "clip_norm": case.clip, "ema_decay": case.ema})
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


def train(case: Case, mesh: Mesh, shard: LatentShard) -> dict[str, Any]:
    """What is compared: curves, gradients, states, averages, scores, the code of a batch."""
    dtype = DTYPES[case.dtype]
    engine = make_engine(case, mesh, shard)
    stats = []
    for step in range(case.steps):
        if step == case.resumed_at:
            state, engine = engine.state(), make_engine(case, mesh, shard)
            engine.load_state(state)
        stats.append(engine.step(part(mesh, step, dtype), LR, measure=True))
        if step == 0:  # Adam's first moment of a first step is the gradient, times 1 - beta1
            gradients = {k: v for k, v in engine.state().items() if k.endswith(".exp_avg")}
    active, _ = engine.scorer().reconstruct(batch(99, dtype))
    held_out = [(index + 1) * batch(50 + index, dtype) for index in range(4)]
    mean_D = torch.zeros(D, dtype=dtype)
    return {
        "curves": curves(stats),
        "dead": [one.dead_fraction for one in stats],
        "gradients": gradients,
        "state": engine.state(),
        "averaged": engine.weights(averaged=True),
        "scores": evaluate(engine.scorer(), held_out, mean_D, N, mesh),
        "code": code(active, shard.first_latent),
    }


def code(active: Active, first_latent: int) -> Tensor:
    """The active latents' values at their global ids, [B, N]."""
    dense_BN = active.values_BK.new_zeros(len(active.values_BK), N)
    ids_BK = (active.indices_BK + first_latent).clamp_max(N - 1)
    return dense_BN.scatter_add(1, ids_BK, active.values_BK.detach())


def curves(stats: list[StepStats]) -> dict[str, Tensor]:
    names = ("loss", "normalized_mse", "aux_loss", "grad_norm")
    return {
        name: torch.stack([torch.as_tensor(getattr(one, name)).double() for one in stats])
        for name in names
    }


def on_rank(mesh: Mesh, cases: list[Case], defect: str | None = None) -> list[dict[str, Any]]:
    from tests.distributed import defects

    with pytest.MonkeyPatch.context() as patch:
        if defect is not None:
            getattr(defects, defect)(patch)
        return [train(case, mesh, MeshShard(mesh, N, exchange=case.exchange)) for case in cases]


@cache
def alone(case: Case) -> dict[str, Any]:
    """The oracle: the plain engine on one process, which knows nothing of a mesh."""
    return train(replace(case, engine="torch", exchange="gather"), ALONE, Unsharded())


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


class Differences(NamedTuple):
    """Of a run on a mesh from the oracle, each the largest difference over the largest value."""

    losses: float
    norms: float
    gradients: float
    weights: float
    moments: float
    """Adam's, after the last step: in them are the gradients of all steps."""
    averaged: float
    scores: float
    same: bool
    """Whether all ranks saw the same curves, to the bit, and all latents' counters are the same."""
    swapped: int
    """Tokens whose active latents are others."""
    narrowest: float
    """Of those tokens, the widest gap between the k-th and the next pre-activation."""

    @property
    def largest(self) -> float:
        return max(*self[:7], 0.0 if self.same else 1.0, self.narrowest)


def compare(results: list[dict[str, Any]], dp: int, latent: int, case: Case) -> Differences:
    """All ranks' results of one case with the oracle's."""
    expected, leader = alone(case), results[0]
    agree = all(
        torch.equal(ours, theirs)
        for other in results[1:]
        for ours, theirs in _pairs(other["curves"], leader["curves"])
    )

    def worst(key: str, *names: str) -> float:
        pairs = _pairs(whole(results, dp, latent, key), expected[key], names)
        return max(difference(found, wanted) for found, wanted in pairs)

    state = whole(results, dp, latent, "state")
    codes = torch.stack([result["code"] for result in results[:latent]]).sum(dim=0)
    swapped = ((codes > 0) != (expected["code"] > 0)).any(dim=1)
    counters = torch.equal(state["tokens_since_fired"], expected["state"]["tokens_since_fired"])
    return Differences(
        losses=worst("curves", "loss", "normalized_mse", "aux_loss"),
        norms=worst("curves", "grad_norm"),
        gradients=worst("gradients"),
        weights=worst("state", "w_enc", "w_dec", "b_enc", "b_pre"),
        moments=worst("state", *(name for name in state if ".exp_avg" in name)),
        averaged=worst("averaged"),
        scores=_relative(leader["scores"], expected["scores"]),
        same=agree and counters and leader["dead"] == expected["dead"],
        swapped=int(swapped.sum()),
        narrowest=_widest_gap(codes[swapped], expected["code"][swapped]),
    )


def _relative(found: Evaluation, expected: Evaluation) -> float:
    pairs = zip(vars(found).values(), vars(expected).values(), strict=True)
    return max(abs(ours - theirs) / max(abs(theirs), 1e-30) for ours, theirs in pairs)


def _widest_gap(codes_BN: Tensor, expected_BN: Tensor) -> float:
    """Between the values of latents that only one of two codes holds."""
    gaps = [0.0]
    for ours, theirs in zip(codes_BN, expected_BN, strict=True):
        strays = torch.cat([ours[theirs == 0], theirs[ours == 0]])
        strays = strays[strays > 0]
        gaps.append(float(strays.max() - strays.min() if len(strays) > 1 else strays.max()))
    return max(gaps)


def _pairs(
    found: dict[str, Tensor], expected: dict[str, Tensor], names: Sequence[str] = ()
) -> list[tuple[Tensor, Tensor]]:
    assert found.keys() == expected.keys()
    return [(found[name], expected[name]) for name in names or expected]
