"""This project's engines: each engine, backend of kernels and matmul is one line in BUILDERS.

Called: `Engine.step`, everything that a training run does between getting a batch and logging.
Clipping and the average of weights (EMA) are off.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from benchmarks.peers.contender import Contender, Score, Weights
from benchmarks.peers.data import dead_ids, mean_predictor_mse
from benchmarks.peers.shapes import AUX_COEF, DEAD_AFTER_TOKENS, LR, Shape
from scaling.autoencoder.topk import TopKAutoencoder, TopKSpec
from scaling.kernels import load_kernels
from scaling.train.engine import Engine
from scaling.train.engine_parts import OptimizerSpec
from scaling.train.fused_engine import FusedEngine
from scaling.train.torch_engine import TorchEngine

OPTIMIZER = OptimizerSpec(beta1=0.9, beta2=0.999, eps=6.25e-10, clip_norm=None, ema_decay=0.0)


class Ours:
    """A model and whichever engine trains it."""

    def __init__(self, model: TopKAutoencoder, engine: Engine, dead: Tensor) -> None:
        self.model = model
        self.engine = engine
        engine.tokens_since_fired()[dead] = 100 * DEAD_AFTER_TOKENS

    def step(self, batch_BD: Tensor) -> None:
        self.engine.step(batch_BD, LR)

    @torch.no_grad()
    def score(self, batch_BD: Tensor) -> Score:
        dead = (self.engine.tokens_since_fired() >= DEAD_AFTER_TOKENS).nonzero().flatten()
        _, losses = self.model.encode_with_losses(batch_BD, dead)
        mean_square = float(losses.normalized_mse) * self.model.spec.mean_predictor_mse
        return Score(mean_square * self.model.spec.d_model, float(losses.aux), len(dead))


def _build(
    shape: Shape,
    weights: Weights,
    batches: list[Tensor],
    *,
    engine: type[TorchEngine] | type[FusedEngine],
    kernels: str,
    matmul: str = "float32",
) -> Contender:
    spec = TopKSpec(
        d_model=shape.d_model,
        n_latents=shape.n_latents,
        k=shape.k,
        k_aux=shape.k_aux,
        aux_coef=AUX_COEF,
        mean_predictor_mse=mean_predictor_mse(batches),
    )
    copies = {name: tensor.clone() for name, tensor in weights.items()}
    model = TopKAutoencoder(spec, load_kernels(kernels, matmul), copies)
    return Ours(model, engine(model, OPTIMIZER, DEAD_AFTER_TOKENS), dead_ids(shape))


_fused = partial(_build, engine=FusedEngine, kernels="cpu")

BUILDERS = {
    "ours_torch": partial(_build, engine=TorchEngine, kernels="torch"),
    "ours_fused_fp32": partial(_fused, matmul="float32"),
    "ours_fused_onednn": partial(_fused, matmul="onednn"),
    "ours_fused_certified": partial(_fused, matmul="certified"),
    "ours_fused_bf16": partial(_fused, matmul="bf16"),
}
"""`ours_fused_fp32`, `_onednn` and `_certified` give the same result by different matmuls (see
scaling/kernels/cpu/select.py): a run takes the fastest."""
