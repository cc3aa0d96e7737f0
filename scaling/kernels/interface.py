"""What a backend offers: selection and decoding, never the pre-activations in between.

No operation takes or returns a [B, N] tensor. At N = 131,072 latents and B = 131,072 tokens that
tensor is 34 GB in bf16; a backend that streams it must be able to stand behind this interface.

Shape suffixes: B tokens in the microbatch, D d_model, N latents, K active latents per token.
"""

from __future__ import annotations

from importlib import import_module
from typing import NamedTuple, Protocol

from torch import Tensor


class Active(NamedTuple):
    """K latents for each token, ordered by value (largest first), then by id (lowest first)."""

    values_BK: Tensor
    """Pre-activations while they are candidates, non-negative once selected. Float."""
    indices_BK: Tensor
    """Latent ids, int64; no id stands twice in a row."""


class Kernels(Protocol):
    """The differentiable operations of one backend. Deterministic on CPU."""

    def encode_topk(
        self, x_BD: Tensor, w_enc_ND: Tensor, b_enc_N: Tensor, k: int, *, b_pre_D: Tensor
    ) -> Active:
        """The k largest pre-activations w_enc (x - b_pre) + b_enc of each token.

        Exact, ties included: among equal values the lowest id wins, and exactly k are kept
        (1 <= k <= N). Values carry gradients to w_enc, b_enc and b_pre (and to x if it asks).
        """
        ...

    def decode(self, active: Active, w_dec_ND: Tensor) -> Tensor:
        """Sum of the active decoder rows times their values, [B, D] (no bias)."""
        ...


BACKENDS = ("cpu", "reference", "torch", "triton")


def load_kernels(name: str, matmul: str = "float32") -> Kernels:
    """The backend called `name`; it is imported only when asked for.

    `matmul` says how the encoder's matmul is computed, where the backend has a choice.
    Raises ValueError for an unknown name: a missing backend is never replaced by a slower one.
    """
    match name:
        case "reference":
            return import_module("scaling.kernels.reference")  # type: ignore[return-value]  # a module of functions
        case "torch":
            return import_module("scaling.kernels.torch_sparse").TorchKernels()
        case "cpu":
            return import_module("scaling.kernels.cpu").CpuKernels(matmul)
        case "triton":
            return import_module("scaling.kernels.gpu").TritonKernels(matmul)
    raise ValueError(f"kernels={name} is not one of {', '.join(BACKENDS)}")
