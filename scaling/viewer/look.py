"""All that the pages of one run show, in memory: put together once, then written by site.py.

Shapes: N latents, E active pairs, P pairs of a latent and a context, S of each latent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scaling.activations.subject import Tokenizer
from scaling.evaluation.material import Material
from scaling.evaluation.metric import Stage
from scaling.interchange.model import LoadedAutoencoder
from scaling.viewer import activity, decoder
from scaling.viewer.activity import Activity, Array, Contexts
from scaling.viewer.measured import counted

Json = dict[str, Any]


@dataclass(frozen=True)
class Sizes:
    """How much a page shows of each."""

    examples: int = 10
    """Top ones, and as many random ones."""
    neighbours: int = 12
    tokens: int = 10
    """Promoted, and as many suppressed."""
    seed: int = 0
    """Of the random examples."""


@dataclass(frozen=True)
class Column:
    """A number of each latent: shown, and sorted by."""

    key: str
    label: str
    about: str
    """What it is, in one sentence."""
    values_N: Array
    """NaN = not measured."""
    on: str = ""
    """How much text it is of, in words."""


@dataclass(frozen=True)
class Known:
    """What evaluations kept of single latents, beside the numbers of the run."""

    columns: Sequence[Column] = ()
    patterns: Mapping[int, Sequence[Json]] = field(default_factory=dict)
    """N2G patterns of the latents that were explained: tokens in reading order with null for any,
    value, examples."""
    layout_N2: Array | None = None
    """Of the decoder rows on a map."""


@dataclass(frozen=True)
class Look:
    """See the module."""

    material: Material
    activity: Activity
    contexts: Contexts
    top: Array
    """Indices into `contexts`, by latent."""
    drawn: Array
    neighbours: decoder.Ranked
    promoted: decoder.Ranked
    suppressed: decoder.Ranked
    plane_N2: Tensor
    plane_about: str
    """What the map is."""
    scale: decoder.Scale
    columns: Sequence[Column]
    patterns: Mapping[int, Sequence[Json]]
    tokens: Sequence[str]
    """Text of each token of the vocabulary."""
    normalization: str
    has_final_norm: bool


def look_at(
    autoencoder: LoadedAutoencoder, material: Material, known: Known, sizes: Sizes, parts: Stage
) -> Look:
    """Everything of a run's latents on the material."""
    with parts("text") as told:
        seen = activity.observe(autoencoder, material, told)
    contexts = seen.contexts()
    top = contexts.top(sizes.examples)
    readout = material.subject.readout()
    kind = autoencoder.facts.normalization
    scale = decoder.median_scale(material, readout, kind)
    with parts("neighbours") as told:
        near = decoder.neighbours(autoencoder.w_dec, sizes.neighbours, told)
    with parts("logits") as told:
        promoted, suppressed = decoder.logit_effects(
            autoencoder.w_dec, readout, scale, sizes.tokens, told
        )
    plane_N2, plane_about = _plane(autoencoder, known)
    return Look(
        material=material,
        activity=seen,
        contexts=contexts,
        top=top,
        drawn=contexts.drawn(sizes.examples, sizes.seed, but=top),
        neighbours=near,
        promoted=promoted,
        suppressed=suppressed,
        plane_N2=plane_N2,
        plane_about=plane_about,
        scale=scale,
        columns=[*_own_columns(seen, len(material.ids_CT)), *known.columns],
        patterns=known.patterns,
        tokens=_texts(material),
        normalization=kind,
        has_final_norm=readout.has_norm,
    )


def _plane(autoencoder: LoadedAutoencoder, known: Known) -> tuple[Tensor, str]:
    """The map that an evaluation made, else the plane of largest variance, and what it is."""
    if known.layout_N2 is not None:
        return torch.from_numpy(known.layout_N2), "decoder rows, laid out by the evaluation"
    plane_N2, share = decoder.plane(autoencoder.w_dec.cpu())
    return plane_N2, f"first two principal components, {share:.1%} of the variance"


def _own_columns(seen: Activity, n_contexts: int) -> list[Column]:
    on = counted(n_contexts, "context")
    return [
        Column("density", "density", "Active tokens / tokens of the text.", seen.density_N, on),
        Column("active", "active tokens", "Tokens in which it is active.", seen.counts_N, on),
        Column("largest", "largest activation", "Of all tokens of the text.", seen.largest_N, on),
        Column("mean", "mean activation", "Of the tokens in which it is active.", seen.mean_N, on),
    ]


def _texts(material: Material) -> list[str]:
    """Of every token; the padding of an embedding, which no tokenizer has, by its number."""
    n_tokens = max(material.subject.vocabulary, int(material.ids_CT.max()) + 1)
    texts = Tokenizer(material.model_folder).texts(range(n_tokens))
    return [text or f"<{number}>" for number, text in enumerate(texts)]


def peak_tokens(look: Look, n: int) -> Array:
    """The tokens at which a latent's first n top examples peak, each once, [N, n]; -1 = none."""
    found = np.full((look.activity.n_latents, n), -1, np.int64)
    ids = look.material.ids_CT.numpy().ravel()
    filled: dict[int, list[int]] = {}
    for pair in look.top:
        start, end = look.contexts.start_P[pair], look.contexts.end_P[pair]
        at = start + int(look.activity.value_E[start:end].argmax())
        token = int(ids[look.activity.token_E[at]])
        of_latent = filled.setdefault(int(look.contexts.latent_P[pair]), [])
        if token not in of_latent and len(of_latent) < n:
            of_latent.append(token)
    for latent, tokens in filled.items():
        found[latent, : len(tokens)] = tokens
    return found
