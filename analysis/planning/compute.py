"""Training FLOPs of a run under a named convention, as the records count them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from analysis.errors import TableError
from analysis.laws.forms import Array
from scaling.budget import flops_per_token_dense, flops_per_token_sparse

CONVENTIONS = ("sparse", "dense")
DEFAULT_CONVENTION = "sparse"  # what the kernels compute


@dataclass(frozen=True)
class Convention:
    """FLOPs per token = d_model (per_latent n + per_active k): 12 n d dense, 2 n d + 8 k d sparse.

    The same numbers as `flops_dense` and `flops_sparse` of a TopK record; AuxK, the optimizer and
    biases are in neither. Records of architectures that decode twice have more of both, of which
    the caution other_flops tells. TableError for another name, or a d_model that is not above 0.
    """

    name: str
    d_model: int

    def __post_init__(self) -> None:
        if self.name not in CONVENTIONS:
            raise TableError(
                f"FLOPs are counted {' or '.join(CONVENTIONS)}, not {self.name!r}; choose one."
            )
        if self.d_model <= 0:
            raise TableError(f"d_model = {self.d_model} is not above 0; give the sweep's.")

    def per_token(self, n: Array | float, k: Array | float) -> Array:
        """Training FLOPs per token at n latents, k of them active; shapes broadcast."""
        per_latent, per_active = self._rates()
        return self.d_model * (per_latent * np.asarray(n, np.float64) + per_active * np.asarray(k))

    def _rates(self) -> tuple[int, int]:
        """Both conventions are linear in n and k, so one latent and one active one tell them."""
        if self.name == "dense":
            return flops_per_token_dense(1, 1), 0
        return flops_per_token_sparse(1, 1, 0), flops_per_token_sparse(0, 1, 1)
