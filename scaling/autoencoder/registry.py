"""The architectures by name, and what their weights are called."""

from __future__ import annotations

from scaling.autoencoder.base import Autoencoder
from scaling.autoencoder.batch_topk import BatchTopKAutoencoder
from scaling.autoencoder.gated import GatedAutoencoder
from scaling.autoencoder.jumprelu import JumpReLUAutoencoder
from scaling.autoencoder.matryoshka import MatryoshkaAutoencoder
from scaling.autoencoder.multi_topk import MultiTopKAutoencoder
from scaling.autoencoder.prolu import ProLUAutoencoder
from scaling.autoencoder.relu import ReLUAutoencoder
from scaling.autoencoder.topk import TopKAutoencoder

ARCHITECTURES: dict[str, type[Autoencoder]] = {
    "topk": TopKAutoencoder,
    "relu": ReLUAutoencoder,
    "prolu": ProLUAutoencoder,
    "gated": GatedAutoencoder,
    "jumprelu": JumpReLUAutoencoder,
    "multi_topk": MultiTopKAutoencoder,
    "matryoshka": MatryoshkaAutoencoder,
    "batch_topk": BatchTopKAutoencoder,
}

PER_LATENT = {"w_enc", "w_dec", "b_enc"}.union(
    *(architecture.MORE_PER_LATENT for architecture in ARCHITECTURES.values())
)
"""Parameters that have a row for each latent, of any architecture."""
