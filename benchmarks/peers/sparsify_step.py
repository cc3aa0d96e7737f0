"""eai-sparsify: its sparse coder, trained as its trainer does with `optimizer="adam"`.

The package's step stands inside `Trainer.fit`, between the forward passes of a language model, and
cannot be called alone. `step` repeats those lines in their order and calls the same functions:
`SparseCoder.set_decoder_norm_to_unit_norm`, `SparseCoder.forward` (with its fused encoder and the
eager decoder that it uses on CPU), `SparseCoder.remove_gradient_parallel_to_decoder_directions`,
`torch.optim.Adam` with its defaults and its linear schedule. Left out, in its favor, is what
takes activations from the language model: a copy of the batch and a mask over tokens. There is
no clipping in it. As `fit` does, it sets torch's float32 matmul precision to "high".

Its AuxK loss gives the encoder no gradient, so less is computed than by the others where latents
are dead. (`FusedEncoder.backward` ignores the gradient of the pre-activations.)
"""

from __future__ import annotations

import torch
from sparsify import SparseCoder, SparseCoderConfig  # pyright: ignore[reportMissingImports]
from sparsify.sparse_coder import ForwardOutput  # pyright: ignore[reportMissingImports]
from torch import Tensor
from transformers import get_linear_schedule_with_warmup

from benchmarks.peers.contender import Contender, Score, Weights, silent_tokens
from benchmarks.peers.data import dead_ids
from benchmarks.peers.shapes import AUX_COEF, DEAD_AFTER_TOKENS, LR, Shape


class Sparsify:
    def __init__(self, coder: SparseCoder, dead: Tensor) -> None:
        self.coder = coder
        self.adam = torch.optim.Adam([{"params": coder.parameters(), "lr": LR}])
        self.schedule = get_linear_schedule_with_warmup(self.adam, 0, 10**6)
        self.did_fire_N = torch.zeros(coder.num_latents, dtype=torch.bool)
        self.tokens_since_fired_N = silent_tokens(
            coder.num_latents,
            dead,
            value=100 * DEAD_AFTER_TOKENS,
            like=torch.zeros(0, dtype=torch.long),
        )

    def step(self, batch_BD: Tensor) -> None:
        self.coder.set_decoder_norm_to_unit_norm()
        out = self._forward(batch_BD)
        self.did_fire_N[out.latent_indices.flatten()] = True
        _ = float(out.fvu.detach()), float(out.auxk_loss.detach())  # its running averages
        loss = out.fvu + AUX_COEF * out.auxk_loss + out.multi_topk_fvu / 8
        loss.div(1).backward()
        self.coder.remove_gradient_parallel_to_decoder_directions()
        self.adam.step()
        self.adam.zero_grad()
        self.schedule.step()
        self._count(len(batch_BD))

    def _forward(self, x_BD: Tensor) -> ForwardOutput:
        dead_N = self.tokens_since_fired_N > DEAD_AFTER_TOKENS
        total_variance = (x_BD - x_BD.mean(0)).pow(2).sum()
        return self.coder(x=x_BD, y=x_BD, dead_mask=dead_N, total_variance=total_variance)

    @torch.no_grad()
    def _count(self, n_tokens: int) -> None:
        self.tokens_since_fired_N += n_tokens
        self.tokens_since_fired_N[self.did_fire_N] = 0
        self.did_fire_N.zero_()

    @torch.no_grad()
    def score(self, batch_BD: Tensor) -> Score:
        out = self._forward(batch_BD)
        squared_error = (batch_BD - out.sae_out).square().sum(dim=1).mean()
        n_dead = int((self.tokens_since_fired_N > DEAD_AFTER_TOKENS).sum())
        return Score(float(squared_error), float(out.auxk_loss), n_dead)


def _build(shape: Shape, weights: Weights, _batches: list[Tensor]) -> Contender:
    torch.set_float32_matmul_precision("high")
    config = SparseCoderConfig(num_latents=shape.n_latents, k=shape.k)
    coder = SparseCoder(shape.d_model, config, "cpu", dtype=torch.float32)
    with torch.no_grad():
        coder.encoder.weight.copy_(weights["w_enc"])
        coder.encoder.bias.copy_(weights["b_enc"])
        coder.W_dec.copy_(weights["w_dec"])
        coder.b_dec.copy_(weights["b_pre"])
    return Sparsify(coder, dead_ids(shape))


BUILDERS = {"sparsify": _build}
