"""dictionary-learning: its TopK trainer.

Called: `dictionary_learning.trainers.top_k.TopKTrainer.update`, which holds the whole step (loss,
backward, projection of the decoder's gradient, clipping, `torch.optim.Adam` with its defaults,
schedule, unit decoder norm). Its clipping has no switch, so torch's function is replaced by one
that does nothing. Steps count from 1001: the first ones of a run set the decoder bias and skip
the running threshold that all later ones keep.

The package imports nnsight, with which it harvests activations, and the version that it asks for
does not import beside today's transformers; an empty module stands in for it.
"""

from __future__ import annotations

import sys
from itertools import count
from types import ModuleType

import torch
from torch import Tensor

from benchmarks.peers.contender import Contender, Score, Weights, silent_tokens, turn_clipping_off
from benchmarks.peers.data import dead_ids
from benchmarks.peers.shapes import AUX_COEF, DEAD_AFTER_TOKENS, LR, Shape

_nnsight = ModuleType("nnsight")
_nnsight.LanguageModel = object  # pyright: ignore[reportAttributeAccessIssue]
sys.modules["nnsight"] = _nnsight

from dictionary_learning.trainers.top_k import (  # noqa: E402  # pyright: ignore[reportMissingImports]
    TopKTrainer,
)

FIRST_STEP = 1001


class DictionaryLearning:
    def __init__(self, trainer: TopKTrainer) -> None:
        self.trainer = trainer
        self.steps = count(FIRST_STEP)

    def step(self, batch_BD: Tensor) -> None:
        self.trainer.update(next(self.steps), batch_BD)

    @torch.no_grad()
    def score(self, batch_BD: Tensor) -> Score:
        # With logging=True the loss comes in parts; like a step's, it counts the batch's tokens.
        losses = self.trainer.loss(batch_BD, step=0, logging=True).losses
        dead_N = self.trainer.num_tokens_since_fired >= self.trainer.dead_feature_threshold
        return Score(losses["l2_loss"], losses["auxk_loss"], int(dead_N.sum()))


def _build(shape: Shape, weights: Weights, _batches: list[Tensor]) -> Contender:
    turn_clipping_off()
    trainer = TopKTrainer(
        steps=10**6,
        activation_dim=shape.d_model,
        dict_size=shape.n_latents,
        k=shape.k,
        layer=0,
        lm_name="none",
        lr=LR,
        auxk_alpha=AUX_COEF,
        warmup_steps=0,
        device="cpu",
    )
    with torch.no_grad():
        trainer.ae.encoder.weight.copy_(weights["w_enc"])
        trainer.ae.encoder.bias.copy_(weights["b_enc"])
        trainer.ae.decoder.weight.copy_(weights["w_dec"].T)
        trainer.ae.b_dec.copy_(weights["b_pre"])
    trainer.num_tokens_since_fired = silent_tokens(
        shape.n_latents,
        dead_ids(shape),
        value=100 * DEAD_AFTER_TOKENS,
        like=trainer.num_tokens_since_fired,
    )
    return DictionaryLearning(trainer)


BUILDERS = {"dictionary_learning": _build}
