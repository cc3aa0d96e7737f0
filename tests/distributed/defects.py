"""Defects of known code, patched in one at a time, which the comparison must see."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from scaling.autoencoder import dead, topk
from scaling.distributed import latent, selection
from scaling.distributed.deepspeed_engine import DeepSpeedEngine
from scaling.train import evaluate, torch_engine
from scaling.train.evaluate import Evaluation
from scaling.train.mesh import Done
from scaling.train.torch_engine import TorchEngine
from tests.ranks import ThreadAxis


def norm_of_one_shard(patch: pytest.MonkeyPatch) -> None:
    """The sharded gradient norm is not reduced."""
    _without_exchange(patch, "sum_", "gradient norm")


def results_not_awaited(patch: pytest.MonkeyPatch) -> None:
    """A collective's result is used before it is there."""
    honest = ThreadAxis.begin_sum_

    def begin(self: ThreadAxis, tensor: Tensor, purpose: str) -> Any:
        before = tensor.clone()
        pending = honest(self, tensor, purpose)
        tensor.copy_(before)
        return pending

    patch.setattr(ThreadAxis, "begin_sum_", begin)


def stale_gradients(patch: pytest.MonkeyPatch) -> None:
    """Gradients are never zeroed."""
    patch.setattr(torch.optim.Adam, "zero_grad", lambda self, set_to_none: None)


def no_candidates(patch: pytest.MonkeyPatch) -> None:
    """More shards than k x capacity: each may offer none."""
    patch.setattr(latent.MeshShard, "_exchange", lambda self, k, widest: selection.limited(0))


def few_candidates(patch: pytest.MonkeyPatch) -> None:
    """Candidates are cut off without a second look, though one shard is hot."""
    cut = selection.limited(4)
    patch.setattr(latent.MeshShard, "_exchange", lambda self, k, widest: cut)


def ties_all_kept(patch: pytest.MonkeyPatch) -> None:
    """Everything at or above the k-th value is kept."""

    def kept(values_SBW: Tensor, k: int) -> Tensor:
        flat = values_SBW.transpose(0, 1).flatten(1)
        return (values_SBW >= flat.topk(k, dim=1).values[:, -1:]).sum(dim=2)

    patch.setattr(selection, "kept", kept)


def coarse_bisection(patch: pytest.MonkeyPatch) -> None:
    """The threshold is sought by bisection that ends too early: more than k are kept."""

    def kept(values_SBW: Tensor, k: int) -> Tensor:
        flat = values_SBW.transpose(0, 1).flatten(1)
        low, high = flat.amin(dim=1), flat.amax(dim=1)
        for _ in range(3):
            middle = (low + high) / 2
            enough = (flat > middle[:, None]).sum(dim=1) >= k
            low, high = torch.where(enough, middle, low), torch.where(enough, high, middle)
        return (values_SBW > low[:, None]).sum(dim=2)

    patch.setattr(selection, "kept", kept)


def auxk_without_gradient(patch: pytest.MonkeyPatch) -> None:
    """The rows of dead latents get no gradient from AuxK."""
    patch.setattr(topk, "rows_of", lambda weight_ND, ids: weight_ND.detach()[ids])


def auxk_with_pre_bias(patch: pytest.MonkeyPatch) -> None:
    """AuxK's reconstruction has b_pre, its target has not."""
    honest = topk.TopKAutoencoder._aux_reconstruction
    patch.setattr(
        topk.TopKAutoencoder,
        "_aux_reconstruction",
        lambda self, *arguments: honest(self, *arguments) + self.b_pre,
    )


def dead_counts_per_rank(patch: pytest.MonkeyPatch) -> None:
    """Each replica counts its own tokens and firings."""
    honest = dead.DeadLatents.update
    patch.setattr(
        dead.DeadLatents, "update", lambda self, fired, tokens: honest(self, fired, tokens // 2)
    )
    _without_exchange(patch, "begin_max_", "fired latents")


def moments_of_rank_0_alone(patch: pytest.MonkeyPatch) -> None:
    """Only rank 0's optimizer state is saved; the others resume with none."""
    honest = TorchEngine.load_state

    def load(self: TorchEngine, state: dict[str, Tensor]) -> None:
        if not self.mesh.leads:
            lost = (name for name in state if name.endswith((".exp_avg", ".exp_avg_sq")))
            state = state | {name: torch.zeros_like(state[name]) for name in lost}
        honest(self, state)

    patch.setattr(TorchEngine, "load_state", load)


def unit_columns(patch: pytest.MonkeyPatch) -> None:
    """The decoder is normalized along the wrong dimension."""
    patch.setattr(torch_engine, "renormalize_rows_", lambda w: w.data.div_(w.data.norm(dim=0)))


def mean_of_ratios(patch: pytest.MonkeyPatch) -> None:
    """Normalized MSE as a mean of the replicas' ratios."""
    honest = evaluate._Totals.over

    def over(self: evaluate._Totals, mesh: Any, n_latents: int) -> Evaluation:
        ratio = self.squared_error / self.squared_distance
        mean = mesh.sum_numbers([ratio], mesh.dp)[0] / mesh.dp.size
        scores = honest(self, mesh, n_latents)
        return Evaluation(mean, scores.l0, scores.silent_fraction, scores.n_tokens)

    patch.setattr(evaluate._Totals, "over", over)


def b_pre_of_one_shard(patch: pytest.MonkeyPatch) -> None:
    """The gradient of what all shards hold is not summed over them."""
    patch.setattr(latent.MeshShard, "replicated", lambda self, parameter: parameter)


def variance_of_one_replica(patch: pytest.MonkeyPatch) -> None:
    """AuxK's denominator is of each replica's tokens."""
    patch.setattr(latent.MeshShard, "mean_over_replicas", lambda self, statistic: statistic)


def zero_norm_of_one_shard(patch: pytest.MonkeyPatch) -> None:
    """DeepSpeed is not told which parameters are sharded: its norm counts one shard."""
    from scaling.distributed import deepspeed_engine

    patch.setattr(deepspeed_engine, "SHARDED", ())


def master_copy_wins(patch: pytest.MonkeyPatch) -> None:
    """Unit rows are written to the model alone, which ZeRO's master copy overwrites."""
    patch.setattr(DeepSpeedEngine, "_write_master", lambda self, name: None)


def _without_exchange(patch: pytest.MonkeyPatch, method: str, forgotten: str) -> None:
    honest = getattr(ThreadAxis, method)

    def exchange(self: ThreadAxis, tensor: Tensor, purpose: str) -> Any:
        result = honest(self, tensor.clone(), purpose)
        if purpose != forgotten:
            whole = result.wait() if hasattr(result, "wait") else result
            tensor.copy_(whole)
        return Done(tensor) if hasattr(result, "wait") else tensor

    patch.setattr(ThreadAxis, method, exchange)
