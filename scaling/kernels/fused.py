"""What a backend offers to the fused engine: whole passes over tokens or latents, no autograd.

A step of one replica needs no gradient matrix. The tokens are passed over once (decode, residual,
gradient of the active values), then the latents once: each latent's gradient rows are summed,
projected, given to Adam, and forgotten while still in the fastest memory.

Shape suffixes: B tokens, D d_model, N latents, K active latents per token, A dead latents.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from torch import Tensor

from scaling.kernels.interface import Active, Kernels


class Rows(NamedTuple):
    """A parameter whose first dimension is latents, and all that is updated along with it."""

    weight: Tensor
    """[N, D] for a matrix, [N] for the latent bias; as are the others."""
    exp_avg: Tensor
    exp_avg_sq: Tensor
    average: Tensor | None
    """Exponential moving average of the weight, not bias-corrected; None = not kept."""


class LatentState(NamedTuple):
    """Everything that belongs to latents, updated in place by `FusedKernels.update_latents`."""

    w_enc: Rows
    w_dec: Rows
    """Unit rows."""
    b_enc: Rows
    shadow: Any
    """What the backend keeps beside the weights for its own use (low-precision copies, norms); made
    by `FusedKernels.make_shadow`, renewed with every update, opaque to the engine."""


class TokenPass(NamedTuple):
    """What one pass over the tokens finds."""

    residual_BD: Tensor
    """x - xhat."""
    grad_values_BK: Tensor
    """Gradient of the loss with respect to the active values; 0 where the ReLU is shut."""
    squared_error: Tensor
    """Sum of the squared residual over tokens and d_model, 0-d."""


class GradientSummary(NamedTuple):
    """What else the gradients of the latents are needed for, taken before the update."""

    squared_norm: Tensor
    """Sum of squares of the three gradients, w_dec's without its part along each row; 0-d."""
    b_pre_D: Tensor
    """Sum over latents of grad b_enc[n] * w_enc[n]: minus the encoder's share of b_pre's
    gradient, since b_pre moves all pre-activations of a latent alike."""


class RowGradients(NamedTuple):
    """Further gradients (of the auxiliary loss) for some latents, added to the sums."""

    ids_A: Tensor
    """Ascending, int64."""
    w_enc_AD: Tensor
    w_dec_AD: Tensor
    b_enc_A: Tensor


class AuxiliaryPass(NamedTuple):
    """What a few latents make of a target, and how they would do better."""

    squared_error: Tensor
    """Sum over tokens and d_model of (target - reconstruction)^2, 0-d."""
    gradients: RowGradients


class LatentSums(NamedTuple):
    """What the latents' gradients are sums of.

    With g = residual_scale * residual the gradient of the loss with respect to xhat:
    grad w_dec[n] = sum of value * g, grad w_enc[n] = sum of grad_value * centered,
    grad b_enc[n] = sum of grad_value, over the (token, slot) pairs whose latent is n.
    """

    active: Active
    grad_values_BK: Tensor
    centered_BD: Tensor
    """x - b_pre."""
    residual_BD: Tensor
    residual_scale: float
    extra: RowGradients | None


@dataclass(frozen=True, kw_only=True)
class AdamStep:
    """Constants of one update: Adam (Kingma and Ba 2015), as torch.optim.Adam computes it."""

    lr: float
    beta1: float
    beta2: float
    eps: float
    step: int
    """1 for the first update."""
    ema_decay: float
    """0 = no average is kept."""
    grad_factor: float = 1.0
    """Multiplies all gradients first: clipping by the global norm."""


class FusedKernels(Kernels, Protocol):
    """The passes of one fused step. Deterministic: the same bits on every run."""

    def make_shadow(self, w_enc_ND: Tensor, w_dec_ND: Tensor) -> Any:
        """See `LatentState.shadow`."""
        ...

    def select(
        self, centered_BD: Tensor, w_enc_ND: Tensor, b_enc_N: Tensor, k: int, shadow: Any
    ) -> Active:
        """The k largest pre-activations, after the ReLU; ids and order as `encode_topk`'s."""
        ...

    def token_pass(
        self,
        centered_BD: Tensor,
        active: Active,
        w_dec_ND: Tensor,
        residual_scale: float,
        shadow: Any,
    ) -> TokenPass:
        """Decode, residual, and the gradient residual_scale * <residual, w_dec row> of each value.

        `residual_scale` makes the residual the gradient with respect to xhat (it is negative).
        """
        ...

    def auxiliary_pass(
        self,
        centered_BD: Tensor,
        target_BD: Tensor,
        state: LatentState,
        ids_A: Tensor,
        k: int,
        residual_scale: float,
    ) -> AuxiliaryPass:
        """Reconstruct the target (no bias) from the k largest pre-activations of latents ids_A.

        The gradient with respect to that reconstruction is residual_scale * (target - it).
        """
        ...

    def summarize_gradients(self, state: LatentState, sums: LatentSums) -> GradientSummary:
        """A pass over the latents that changes nothing, for clipping by the global norm."""
        ...

    def update_latents(
        self, state: LatentState, sums: LatentSums, adam: AdamStep
    ) -> GradientSummary:
        """Gradient, projection, Adam, unit decoder rows, average, shadow: one pass over latents.

        The summary is of the gradients before `grad_factor`.
        """
        ...
