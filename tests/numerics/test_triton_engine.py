"""The fused engine on the Triton backend trains as the torch engine does.

Without a GPU the kernels run under Triton's interpreter, at tiny shapes and for few steps.
"""

from __future__ import annotations

import os

import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read when a kernel is defined, at the import below

from scaling.autoencoder import TopKAutoencoder, TopKSpec
from scaling.autoencoder.init import initial_weights
from scaling.kernels import load_kernels
from scaling.train.engine import Engine, StepStats
from scaling.train.engine_parts import OptimizerSpec
from scaling.train.fused_engine import FusedEngine
from scaling.train.torch_engine import TorchEngine

ON_GPU = torch.cuda.is_available()
DEVICE = "cuda" if ON_GPU else "cpu"
B, D, N, K, STEPS = (48, 72, 300, 6, 50) if ON_GPU else (8, 24, 64, 3, 5)
DEAD_AFTER = 3 * B
OPTIMIZER = OptimizerSpec(beta1=0.9, beta2=0.999, eps=6.25e-10, clip_norm=0.05, ema_decay=0.9)


def engine(kernels: str, matmul: str = "float32") -> Engine:
    spec = TopKSpec(
        d_model=D, n_latents=N, k=K, k_aux=4 * K, aux_coef=1 / 32, mean_predictor_mse=0.5
    )
    weights = initial_weights(N, torch.full((D,), 0.1), tied=True, seed=0, dtype=torch.float32)
    on_device = {name: tensor.to(DEVICE) for name, tensor in weights.items()}
    model = TopKAutoencoder(spec, load_kernels(kernels, matmul), on_device)
    kind = TorchEngine if kernels == "torch" else FusedEngine
    return kind(model, OPTIMIZER, DEAD_AFTER)


def tolerance(name: str) -> float:
    """torch's fused Adam for CUDA takes 1 - beta2 in float32, which is 1.29e-5 off."""
    return 2e-5 if ON_GPU and name.endswith("exp_avg_sq") else 1e-5


def train(trained: Engine) -> list[StepStats]:
    stats = []
    for step in range(STEPS):
        generator = torch.Generator().manual_seed(100 + step)
        scale = torch.linspace(0.2, 2.0, D)  # uneven, so that latents do die
        batch = torch.randn(B, D, generator=generator) * scale + 0.1
        stats.append(trained.step(batch.to(DEVICE), 1e-3, measure=True))
    return stats


def test_steps_equal_the_torch_engine() -> None:
    expected, found = engine("torch"), engine("triton")
    stats = list(zip(train(expected), train(found), strict=True))
    assert any(0 < one.dead_fraction < 1 for one, _ in stats)  # AuxK was at work
    assert expected.state().keys() == found.state().keys()
    for name, one in expected.state().items():
        other = found.state()[name].to(one.device)
        difference = float((other.double() - one.double()).abs().max())
        assert difference <= tolerance(name) * float(one.double().abs().max()), name
    for one, other in stats:
        assert float(other.loss) == pytest.approx(float(one.loss), rel=1e-5)
        assert float(other.grad_norm) == pytest.approx(float(one.grad_norm), rel=1e-5)  # type: ignore[arg-type]


def test_bf16_operands_train_to_nearly_the_same_loss() -> None:
    exact, low = train(engine("torch")), train(engine("triton", "bf16"))
    assert float(low[-1].loss) == pytest.approx(float(exact[-1].loss), rel=2e-2)
    assert float(low[-1].loss) != float(exact[-1].loss)
