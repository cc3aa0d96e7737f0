"""From a run's activations to the patterns of its latents: which examples, and what they give.

Shapes: R tokens kept, E examples, V variants of each (n2g.py), D = d_model, N latents.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from scaling.evaluation.explain_activity import Activity, activity
from scaling.evaluation.halves import Half
from scaling.evaluation.material import Material
from scaling.evaluation.metric import Subject, Told
from scaling.evaluation.n2g import Floats, Ints, Pattern, Trie, pattern_of
from scaling.evaluation.n2g_probe import Probed, probed, probed_once
from scaling.interchange.model import LoadedAutoencoder

ROWS = 256
"""Vectors encoded at once: bounds the dense values held, [ROWS, N]."""


def true_activity(run: Subject, material: Material, half: Half) -> Activity:
    """What is active at the tokens of a half."""
    return activity(run.autoencoder, half.x_RD, half.tokens_R, material.ids_CT.numel())


def sample(build: Activity, test: Activity, n_latents: int, options: Any) -> tuple[Ints, int]:
    """A seeded sample of the latents that are active in both halves, and how many these are.

    The first of them in an order of all latents, so that one which rounding adds or takes away
    leaves the others in the sample.
    """
    eligible = np.intersect1d(build.latents_P, test.latents_P)
    order = np.random.default_rng(options.seed).permutation(n_latents)
    chosen = order[np.isin(order, eligible)][: options.latents]
    return np.sort(chosen), len(eligible)


def examples(build: Activity, latents: Ints, options: Any) -> dict[int, Ints]:
    """Of each latent, its strongest tokens, or a seeded sample of them."""
    found: dict[int, Ints] = {}
    for latent in latents.tolist():
        tokens, values = build.of(latent)
        order = np.argsort(-values, kind="stable")
        if options.random_examples:
            order = np.random.default_rng([options.seed, latent]).permutation(len(tokens))
        found[latent] = tokens[order[: options.examples]]
    return found


def probes(
    material: Material, build: Half, chosen: Mapping[int, Ints], options: Any, told: Told
) -> Probed:
    """Of the tokens that all runs share and of those chosen for this run."""

    def shared(one: Material) -> Probed:
        rng = np.random.default_rng(options.seed)
        tokens = np.sort(rng.permutation(build.tokens_R)[: options.shared])
        return probed_once(one, tokens, options.max_length)

    name = f"n2g probes {options.seed} {options.shared} {options.max_length}"
    of_all = material.once(name, shared)
    own = np.setdiff1d(np.concatenate([[], *chosen.values()]).astype(np.int64), of_all.tokens_E)
    return of_all.joined(probed(material, own, options.max_length, told)) if len(own) else of_all


class Example(NamedTuple):
    """What one active latent at one probed token says."""

    latent: int
    token: int
    pattern: Pattern | None
    """None where no suffix keeps it active."""
    value: float


def explained(
    autoencoder: LoadedAutoencoder, material: Material, at: Probed, build: Activity, options: Any
) -> Iterator[Example]:
    """Of every latent that is active at a probed token."""
    n_positions = material.ids_CT.shape[1]
    ids_CT = material.ids_CT.numpy()
    by_token = np.argsort(build.tokens_P, kind="stable")
    tokens_P = build.tokens_P[by_token]
    per_pass = max(1, ROWS // at.residual_EVD.shape[1])
    for start in range(0, len(at.tokens_E), per_pass):
        values_EVN = _values(autoencoder, at, slice(start, start + per_pass), material.device)
        for values_VN, token in zip(values_EVN, at.tokens_E[start : start + per_pass], strict=True):
            span = slice(*np.searchsorted(tokens_P, [token, token + 1]))
            pairs = by_token[span]
            latents = build.latents_P[pairs]
            values_LV = values_VN[:, torch.from_numpy(latents)].T.cpu().numpy()
            context, position = divmod(int(token), n_positions)
            ids_T = ids_CT[context, : position + 1]
            for latent, values_V, active in zip(
                latents.tolist(), values_LV, build.values_P[pairs].tolist(), strict=True
            ):
                pattern = pattern_of(ids_T, values_V, active, options.ratio, options.saliency)
                yield Example(latent, int(token), pattern, active)


def _values(autoencoder: LoadedAutoencoder, at: Probed, which: slice, device: str) -> Tensor:
    """Latents in the variants, [E, V, N]: 0 where the vector is no kept one, NaN where the context
    holds no such suffix."""
    values_EVN = autoencoder.latents(at.residual_EVD[which].float().to(device))
    values_EVN[~at.kept_EV[which].to(device)] = 0.0
    values_EVN[~at.usable_EV[which].to(device)] = torch.nan
    return values_EVN


def tries(found: list[Example], chosen: Mapping[int, Ints]) -> tuple[Trie, Trie]:
    """Of the examples chosen for each latent alone, and of all there are."""
    of_chosen, of_all = Trie(), Trie()
    own = {latent: set(tokens.tolist()) for latent, tokens in chosen.items()}
    for example in found:
        if example.pattern is None:
            continue
        of_all.add(example.latent, example.pattern, example.value)
        if example.token in own.get(example.latent, ()):
            of_chosen.add(example.latent, example.pattern, example.value)
    return of_chosen, of_all


def scaled(said: Activity, scale_N: Floats) -> Activity:
    """The same pairs with each latent's values times its scale."""
    values_P = said.values_P * scale_N[said.latents_P]
    return Activity(said.latents_P, said.tokens_P, values_P, said.span)
