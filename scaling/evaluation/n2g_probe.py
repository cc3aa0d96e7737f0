"""The subject model on shortened and padded text: what N2G asks of it.

What a sequence makes of the residual stream at its last token does not depend on an autoencoder, so
it is computed once per example for all latents that are active there, and for all runs.

Shapes: E examples, V variants of each (n2g.py), D = d_model, T tokens per context.
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256

import numpy as np
import torch
from torch import Tensor

from scaling.evaluation.kept import kept
from scaling.evaluation.material import Material
from scaling.evaluation.metric import Told
from scaling.evaluation.n2g import Ints, first_variant, n_variants

VERSION = 1
"""Raise it when the same tokens would give other residual streams."""
SEQUENCES = 256
"""Per pass of the subject model."""


@dataclass(frozen=True)
class Probed:
    """The residual stream at the last token of each variant of some examples."""

    tokens_E: Ints
    """Examples, as context * T + token."""
    residual_EVD: Tensor
    """In the subject's dtype, on the CPU."""
    usable_EV: Tensor
    """bool: false where the context holds no such suffix."""
    kept_EV: Tensor
    """bool: false where the vector is none that autoencoders are for; no latent is active there."""

    def joined(self, other: Probed) -> Probed:
        return Probed(
            np.concatenate([self.tokens_E, other.tokens_E]),
            torch.cat([self.residual_EVD, other.residual_EVD]),
            torch.cat([self.usable_EV, other.usable_EV]),
            torch.cat([self.kept_EV, other.kept_EV]),
        )


_TENSORS = ("residual_EVD", "usable_EV", "kept_EV")


def probed(material: Material, tokens_E: Ints, max_length: int, told: Told | None = None) -> Probed:
    """All variants of the examples. Each sequence begins with as many padding tokens as first
    positions are no vectors (at least one): they take the place of the text before."""
    n_examples, n_positions = len(tokens_E), material.ids_CT.shape[1]
    shape = (n_examples, n_variants(max_length))
    d_model = next(iter(material.batches())).residual_CTD.shape[2]
    dtype = next(iter(material.batches())).residual_CTD.dtype
    found = Probed(
        tokens_E,
        torch.zeros(*shape, d_model, dtype=dtype),
        torch.zeros(shape, dtype=torch.bool),
        torch.zeros(shape, dtype=torch.bool),
    )
    # A pass costs what it reads; shown are examples, which people can picture.
    lengths = range(1, max_length + 1)
    read, to_read = 0, max(1, n_examples * sum((length + 1) ** 2 for length in lengths))
    for length in lengths:
        fits = np.flatnonzero(tokens_E % n_positions >= length - 1)
        at = first_variant(length)
        per_pass = max(1, SEQUENCES // (length + 1))
        for start in range(0, len(fits), per_pass):
            chosen = fits[start : start + per_pass]
            residual_EVD = _last_residual(material, tokens_E[chosen], length)
            columns = slice(at, at + length + 1)
            found.residual_EVD[chosen, columns] = residual_EVD
            found.usable_EV[chosen, columns] = True
            norms_EV = residual_EVD.float().norm(dim=2)
            found.kept_EV[chosen, columns] = norms_EV <= material.held_out.max_norm
            if told is not None:
                done = read + min(start + per_pass, len(fits)) * (length + 1) ** 2
                told(done * n_examples // to_read, n_examples)
        read += n_examples * (length + 1) ** 2
    return found


def probed_once(material: Material, tokens_E: Ints, max_length: int) -> Probed:
    """The same, kept in `data_dir` for runs that are evaluated later."""

    def make() -> dict[str, Tensor]:
        with material.stage("tokens probed for all runs") as told:
            found = probed(material, tokens_E, max_length, told)
        return {name: getattr(found, name) for name in _TENSORS}

    what = {
        "version": VERSION,
        "contexts": sha256(material.ids_CT.numpy().tobytes()).hexdigest(),
        "n_positions": material.ids_CT.shape[1],
        "tokens": sha256(tokens_E.astype(np.int64).tobytes()).hexdigest(),
        "max_length": max_length,
    }
    return Probed(tokens_E, **kept(material, "n2g", what, make))


def _last_residual(material: Material, tokens_E: Ints, length: int) -> Tensor:
    """[E, length + 1, D] of the suffixes of a length: whole, and with each token padded."""
    ids_CT = material.ids_CT.numpy()
    context_E, token_E = np.divmod(tokens_E, ids_CT.shape[1])
    back = np.arange(-length + 1, 1)
    suffix_EL = ids_CT[context_E[:, None], token_E[:, None] + back]
    padding = material.subject.padding
    variants_EVL = np.repeat(suffix_EL[:, None], length + 1, axis=1)
    variants_EVL[:, 1:][:, np.arange(length), np.arange(length)] = padding
    n_first = max(1, material.held_out.drop_positions)
    first = np.full((*variants_EVL.shape[:2], n_first), padding)
    ids = torch.from_numpy(np.concatenate([first, variants_EVL], axis=2)).flatten(0, 1)
    residual_SD = material.subject.residual(ids)[:, -1]
    return residual_SD.unflatten(0, variants_EVL.shape[:2]).cpu()
