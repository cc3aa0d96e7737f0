"""Memory by part, against the tensors of real engines and arithmetic by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from scaling.autoencoder.topk import TopKAutoencoder, TopKSpec
from scaling.budget import GIB, PROCESS_BYTES, Shape, host_bytes, memory_parts, rank_bytes
from scaling.kernels import load_kernels
from scaling.sweep.execution import native_problem
from scaling.train.engine_parts import OptimizerSpec
from scaling.train.fused_engine import FusedEngine
from scaling.train.torch_engine import TorchEngine

BASE = Shape(n_latents=256, d_model=24, k=4, batch_tokens=64, engine="torch")
SIXTEEN_M = Shape(
    n_latents=2**24,
    d_model=12_288,
    k=256,
    batch_tokens=131_072,
    dp=8,
    latent=512,
    engine="deepspeed",
    zero_stage=1,
    exchange="candidates",
    precision="bf16",
    device="cuda",
)


def engine_of(shape: Shape) -> TorchEngine | FusedEngine:
    """A real one, after one step."""
    n, d = shape.n_latents, shape.d_model
    weights = {
        "w_enc": torch.randn(n, d),
        "w_dec": torch.nn.functional.normalize(torch.randn(n, d)),
        "b_enc": torch.zeros(n),
        "b_pre": torch.zeros(d),
    }
    spec = TopKSpec(
        d_model=d, n_latents=n, k=shape.k, k_aux=4, aux_coef=0.0, mean_predictor_mse=1.0
    )
    fused = shape.engine == "fused"
    model = TopKAutoencoder(spec, load_kernels("cpu" if fused else "torch"), weights)
    adam = OptimizerSpec(
        beta1=0.9, beta2=0.999, eps=1e-8, clip_norm=None, ema_decay=0.99 * shape.ema
    )
    kind = FusedEngine if fused else TorchEngine
    engine = kind(model, adam, dead_after_tokens=10**9)
    engine.step(torch.randn(shape.batch_tokens, d), 1e-3)
    return engine


def bytes_of(tensors: list[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


@pytest.mark.parametrize("ema", [True, False])
def test_parts_are_what_the_torch_engine_holds(ema: bool) -> None:
    shape = replace(BASE, ema=ema)
    engine, parts = engine_of(shape), memory_parts(shape)
    assert isinstance(engine, TorchEngine)
    params = list(engine.params.values())
    moments = [engine.adam.state[p][part] for p in params for part in ("exp_avg", "exp_avg_sq")]
    assert parts["weights"] == bytes_of(params)
    assert parts["gradients"] == bytes_of([p.grad for p in params if p.grad is not None])
    assert parts["Adam moments"] == bytes_of(moments)
    assert parts.get("average", 0) == bytes_of(list(engine.average.averages.values()))
    written = [t for name, t in engine.state().items() if t.dim() and name != "tokens_since_fired"]
    assert parts["checkpoint"] == bytes_of(written)


@pytest.mark.skipif(native_problem() is not None, reason="no C++ compiler")
def test_the_fused_engine_has_no_gradients() -> None:
    shape = replace(BASE, engine="fused")
    engine, parts = engine_of(shape), memory_parts(shape)
    assert isinstance(engine, FusedEngine)
    assert all(param.grad is None for param in engine.params.values())
    assert "gradients" not in parts
    assert parts["Adam moments"] == bytes_of([t for both in engine.moments.values() for t in both])


def test_the_16_million_example_by_hand() -> None:
    """A shard has 32,768 latents: 2 x 32,768 x 12,288 weights of 4 bytes are 3 GiB."""
    parts = memory_parts(SIXTEEN_M)
    assert parts["weights"] / GIB == pytest.approx(3.0, rel=1e-4)
    assert parts["gradients"] == parts["weights"] == parts["average"]
    assert parts["Adam moments"] / GIB == pytest.approx(2 * 3 / 8, rel=1e-4)
    assert parts["ZeRO partition"] / GIB == pytest.approx(3 * 3 / 8, rel=1e-4)
    # 16,384 tokens of a replica are 0.75 GiB; two batches, six tensors of that size.
    assert parts["batch"] / GIB == 1.5
    assert parts["residuals"] / GIB == 4.5
    assert parts["checkpoint"] / GIB == pytest.approx(12.0, rel=1e-4)
    assert rank_bytes(SIXTEEN_M) < 80e9


def test_the_whole_state_is_more_than_any_gpu_has() -> None:
    alone = replace(SIXTEEN_M, dp=1, latent=1, engine="fused", zero_stage=0)
    assert memory_parts(alone)["weights"] / GIB == pytest.approx(1536, rel=1e-3)


@pytest.mark.parametrize("engine", ["fused", "torch", "deepspeed"])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_more_of_anything_takes_more_and_more_shards_less(engine: str, device: str) -> None:
    stage = 1 if engine == "deepspeed" else 0
    base = replace(SIXTEEN_M, engine=engine, zero_stage=stage, device=device)
    base = base if engine != "fused" else replace(base, dp=1)
    for larger in (
        replace(base, n_latents=2**25),
        replace(base, d_model=16_384),
        replace(base, batch_tokens=2**18),
        replace(base, k=512),
        replace(base, k_aux=512, dead_share=0.1),
        replace(base, latent=256),
    ):
        assert rank_bytes(larger) > rank_bytes(base)
    assert rank_bytes(replace(base, ema=False)) < rank_bytes(base)


def test_zero_divides_the_moments_and_nothing_else_does() -> None:
    one = replace(SIXTEEN_M, dp=1)
    ratio = memory_parts(one)["Adam moments"] / memory_parts(SIXTEEN_M)["Adam moments"]
    assert ratio == pytest.approx(8, rel=1e-6)
    plain = replace(SIXTEEN_M, engine="torch", zero_stage=0)
    assert memory_parts(plain)["Adam moments"] == 2 * memory_parts(plain)["weights"]


def test_the_start_may_take_more_than_the_training() -> None:
    small = Shape(n_latents=8, d_model=4096, k=2, batch_tokens=2)
    assert rank_bytes(small) == 4 * 32_768 * 4096 * 4 + PROCESS_BYTES


def test_buckets_are_touched_only_as_far_as_there_are_gradients() -> None:
    small = replace(BASE, engine="deepspeed", zero_stage=1, dp=2)
    assert memory_parts(small)["buckets"] == memory_parts(small)["gradients"]
    assert memory_parts(SIXTEEN_M)["buckets"] == 2 * 500_000_000 * 4


def test_a_host_holds_what_its_rank_writes() -> None:
    """An eighth of a shard's 12 GiB; its sample of 6 GiB at the start is more."""
    assert host_bytes(SIXTEEN_M) / GIB == 3 + 6
    few = replace(SIXTEEN_M, dp=1)
    assert host_bytes(few) / GIB == pytest.approx(3 + 12, rel=1e-3)
    on_cpu = replace(SIXTEEN_M, device="cpu")
    assert memory_parts(on_cpu)["checkpoint"] / GIB == pytest.approx(12 + 12 / 8, rel=1e-3)
