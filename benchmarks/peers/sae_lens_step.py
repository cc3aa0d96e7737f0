"""sae-lens: its TopK autoencoder, dense or with `use_sparse_activations`, and its trainer.

Called: `sae_lens.training.sae_trainer.SAETrainer.step`, which holds the whole step (forward, loss,
dead counters, backward, clipping, `torch.optim.Adam` with its defaults, schedules). Its clipping
has no switch, so torch's function is replaced by one that does nothing. The decoder is not kept
at unit norm; instead `rescale_acts_by_decoder_norm`, its default, treats it as if it were. With
sparse activations that option is off, so nothing is done about norms: on CPU the backward pass of
the two together raises NotImplementedError (torch has no `view` of a sparse tensor).

Dead latents are counted in steps; AuxK is not normalized, its values are not rectified, and its
matmuls are dense even with sparse activations.
"""

from __future__ import annotations

from functools import partial

import torch
from sae_lens.config import (  # pyright: ignore[reportMissingImports]
    LoggingConfig,
    SAETrainerConfig,
)
from sae_lens.saes.sae import TrainStepInput  # pyright: ignore[reportMissingImports]
from sae_lens.saes.topk_sae import (  # pyright: ignore[reportMissingImports]
    TopKTrainingSAE,
    TopKTrainingSAEConfig,
)
from sae_lens.training.sae_trainer import SAETrainer  # pyright: ignore[reportMissingImports]
from torch import Tensor

from benchmarks.peers.contender import Contender, Score, Weights, silent_tokens, turn_clipping_off
from benchmarks.peers.data import dead_ids
from benchmarks.peers.shapes import AUX_COEF, LR, Shape

DEAD_AFTER_STEPS = 100_000


class SaeLens:
    def __init__(self, trainer: SAETrainer) -> None:
        self.trainer = trainer

    def step(self, batch_BD: Tensor) -> None:
        self.trainer.step(batch_BD)
        self.trainer.n_training_steps += 1  # its callers count

    @torch.no_grad()
    def score(self, batch_BD: Tensor) -> Score:
        dead_N = self.trainer.dead_neurons
        output = self.trainer.sae.training_forward_pass(
            TrainStepInput(
                sae_in=batch_BD,
                dead_neuron_mask=dead_N,
                coefficients={},
                n_training_steps=self.trainer.n_training_steps,
                is_logging_step=False,
            )
        )
        aux = float(output.losses["auxiliary_reconstruction_loss"])
        return Score(float(output.losses["mse_loss"]), aux, int(dead_N.sum()))


def _build(shape: Shape, weights: Weights, _batches: list[Tensor], *, sparse: bool) -> Contender:
    turn_clipping_off()
    sae = TopKTrainingSAE(
        TopKTrainingSAEConfig(
            d_in=shape.d_model,
            d_sae=shape.n_latents,
            k=shape.k,
            use_sparse_activations=sparse,
            aux_loss_coefficient=AUX_COEF,
            rescale_acts_by_decoder_norm=not sparse,
        )
    )
    with torch.no_grad():
        sae.W_enc.copy_(weights["w_enc"].T)
        sae.W_dec.copy_(weights["w_dec"])
        sae.b_enc.copy_(weights["b_enc"])
        sae.b_dec.copy_(weights["b_pre"])
    config = SAETrainerConfig(
        total_training_samples=10**9,
        train_batch_size_samples=shape.batch_tokens,
        lr=LR,
        lr_end=LR,  # unused: its schedule is constant
        dead_feature_window=DEAD_AFTER_STEPS,
        logger=LoggingConfig(log_to_wandb=False),
    )
    trainer = SAETrainer(config, sae, data_provider=iter(()))
    trainer.n_forward_passes_since_fired = silent_tokens(
        shape.n_latents,
        dead_ids(shape),
        value=10 * DEAD_AFTER_STEPS,
        like=trainer.n_forward_passes_since_fired,
    )
    return SaeLens(trainer)


BUILDERS = {
    "sae_lens": partial(_build, sparse=False),
    "sae_lens_sparse": partial(_build, sparse=True),
}
