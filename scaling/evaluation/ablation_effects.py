"""What taking a vector from one token's residual stream does to the logits, and how sparse it is.

Shapes: A ablations at one token, T positions looked at, V = vocabulary, D = d_model.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from scaling.activations.split_subject import SplitSubject
from scaling.evaluation.estimate import Estimate

AT_ONCE = 16
"""Ablations per pass: bounds the logits held."""


@dataclass(frozen=True)
class Site:
    """A token at which latents are ablated, with its text as far as effects are looked at."""

    context: int
    token: int
    ids_1T: Tensor
    residual_1TD: Tensor
    """float32."""

    @property
    def x_D(self) -> Tensor:
        return self.residual_1TD[0, self.token]


class Effect(dict[str, list[float]]):
    """Of many ablations: `sparsity` (NaN where nothing moved) and `l2` of the centred effect;
    `at_token` is the sparsity over V at the ablated token alone, T = 1: what of `sparsity` is that
    effects are of words, and what that they are of few positions. `tokens` are the numbers of the
    tokens ablated."""

    def __init__(self, n_tokens: int) -> None:
        super().__init__(sparsity=[], l2=[], at_token=[])
        self.tokens: list[int] = []
        self._n_tokens = n_tokens

    def add(self, token: int, effect_ATV: Tensor) -> None:
        self.tokens += [token] * len(effect_ATV)
        sparsity_A, l2_A = effect_sparsity(effect_ATV)
        self["sparsity"] += sparsity_A.tolist()
        self["l2"] += l2_A.tolist()
        self["at_token"] += effect_sparsity(effect_ATV[:, :1])[0].tolist()

    @property
    def sparsity(self) -> Estimate:
        """The mean; what is ablated at one token belongs together."""
        return Estimate.grouped(self["sparsity"], self.tokens, self._n_tokens, "tokens")


def effect_sparsity(effect_ATV: Tensor) -> tuple[Tensor, Tensor]:
    """(L1 / L2)^2 / (V T) of effects less their medians over V, [A] float64, and their L2, [A].

    The lower median where V is even. NaN where no logit moved against the others.
    """
    median_AT1 = effect_ATV.median(dim=2, keepdim=True).values
    centred_ATV = effect_ATV - median_AT1
    # Sums over V in the dtype given, over T in float64.
    l1_A = centred_ATV.abs().sum(dim=2).double().sum(dim=1)
    square_A = centred_ATV.square().sum(dim=2).double().sum(dim=1)
    n_effects = effect_ATV.shape[1] * effect_ATV.shape[2]
    return l1_A.square() / square_A / n_effects, square_A.sqrt()


@torch.no_grad()
def logit_changes(
    subject: SplitSubject, site: Site, removed_AD: Tensor, horizon: int
) -> Iterator[Tensor]:
    """Logit differences [A, T, V], float32, of taking each row from the token's residual."""
    if not len(removed_AD):
        return
    before_1TV = subject.logits(site.ids_1T, site.residual_1TD, last=horizon)
    for part_AD in removed_AD.split(AT_ONCE):
        without_ATD = site.residual_1TD.repeat(len(part_AD), 1, 1)
        without_ATD[:, site.token] -= part_AD
        ids_AT = site.ids_1T.expand(len(part_AD), -1)
        yield subject.logits(ids_AT, without_ATD, last=horizon) - before_1TV


def axes(rng: np.random.Generator, d_model: int, n: int) -> dict[str, Tensor]:
    """Unit vectors [A, D], float32."""
    channels = torch.from_numpy(rng.choice(d_model, min(n, d_model), replace=False))
    gaussian_AD = torch.from_numpy(rng.standard_normal((n, d_model))).float()
    return {
        "channels": torch.eye(d_model)[channels],
        "random": gaussian_AD / gaussian_AD.norm(dim=1, keepdim=True),
    }
