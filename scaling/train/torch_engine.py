"""The engine of one process: autograd, torch's fused Adam, and the published order of a step.

    remove the decoder gradient's component along each row -> (clip) -> Adam -> unit rows -> EMA

The released code renormalizes and projects before the step and averages before it too; here the
average is of weights that a user could load: unit rows, after the update.
"""

from __future__ import annotations

import torch
from torch import Tensor

from scaling.autoencoder.dead import DeadLatents
from scaling.autoencoder.decoder_norm import remove_parallel_gradient_, renormalize_rows_
from scaling.autoencoder.topk import TopKAutoencoder
from scaling.train.engine import StepStats
from scaling.train.engine_parts import ModelHolder, OptimizerSpec, copy_all_checked
from scaling.train.weight_average import WeightAverage


class TorchEngine(ModelHolder):
    """See `scaling.train.engine.Engine`."""

    def __init__(
        self, model: TopKAutoencoder, optimizer: OptimizerSpec, dead_after_tokens: int
    ) -> None:
        self.model = model
        self.spec = optimizer
        self.params = dict(model.named_parameters())
        self.adam = torch.optim.Adam(
            self.params.values(),
            lr=0.0,
            betas=(optimizer.beta1, optimizer.beta2),
            eps=optimizer.eps,
            fused=True,  # ten times the default's speed on CPU, where that loops over small ops
        )
        self.dead = DeadLatents(len(model.w_enc), dead_after_tokens, model.w_enc.device)
        self.average = WeightAverage(self.params, optimizer.ema_decay)

    def step(self, batch_BD: Tensor, lr: float, *, measure_norm: bool = False) -> StepStats:
        dead_ids = self.dead.ids()
        active = self.model.encode(batch_BD)
        losses = self.model.losses(batch_BD, active, dead_ids)
        self.adam.zero_grad(set_to_none=True)
        losses.total.backward()
        grad_norm = self._finish_gradients(measure_norm)
        self._update(lr)
        self.dead.update(active, len(batch_BD))
        return StepStats(
            loss=losses.total.detach(),
            normalized_mse=losses.normalized_mse,
            aux_loss=losses.aux,
            dead_fraction=len(dead_ids) / self.model.spec.n_latents,
            grad_norm=grad_norm,
        )

    def _finish_gradients(self, measure_norm: bool) -> Tensor | None:
        assert self.model.w_dec.grad is not None
        remove_parallel_gradient_(self.model.w_dec.grad, self.model.w_dec)
        if self.spec.clip_norm is not None:
            return torch.nn.utils.clip_grad_norm_(self.params.values(), self.spec.clip_norm)
        if measure_norm:
            grads = [param.grad for param in self.params.values() if param.grad is not None]
            return torch.nn.utils.get_total_norm(grads)
        return None

    def _update(self, lr: float) -> None:
        self.adam.param_groups[0]["lr"] = lr
        self.adam.step()
        renormalize_rows_(self.model.w_dec)
        self.average.update()

    def state(self) -> dict[str, Tensor]:
        moments = {
            f"{name}.{part}": self.adam.state[param][part].detach().clone()
            for name, param in self.params.items()
            if param in self.adam.state
            for part in ("exp_avg", "exp_avg_sq", "step")
        }
        counters = {"tokens_since_fired": self.dead.tokens_since_fired_N.clone()}
        return self.weights() | moments | counters | self.average.state()

    @torch.no_grad()
    def load_state(self, state: dict[str, Tensor]) -> None:
        targets: dict[str, Tensor] = dict(self.params)
        targets["tokens_since_fired"] = self.dead.tokens_since_fired_N
        copy_all_checked(targets | self.average.targets(), state)
        for name, param in self.params.items():
            self.adam.state[param] = {
                part: state[f"{name}.{part}"].clone().to(param.device)
                for part in ("exp_avg", "exp_avg_sq", "step")
            }
        self.average.n_updates = int(state["ema_updates"])
