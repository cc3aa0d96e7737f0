"""The autoencoder of a plan: its architecture with every number settled, and what it costs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from scaling import budget


@dataclass(frozen=True, kw_only=True)
class AutoencoderPlan:
    name: str
    n_latents: int
    k: int | None
    """None where sparsity is an outcome."""
    k_aux: int
    aux_coef: float
    dead_after_tokens: int
    b_pre_init: str
    encoder_init: str
    scale_encoder: bool
    dead_treatment: str = "auxk"
    b_enc: bool = True
    decoder_norm: bool = True
    gradient_projection: bool = True
    resample_every_steps: int = 0
    """Updates between resamplings of dead latents; 0 = none."""
    resample_until_step: int = 0
    """The last update after which one may be."""
    options: dict[str, Any] = field(default_factory=dict)
    """What this architecture alone has: {penalty, warmup_steps} of a ReLU's."""

    @property
    def identity(self) -> dict[str, Any]:
        """What of it determines the result; older run ids stay what they are."""
        values = but_defaults(asdict(self), _LATER_AUTOENCODER_KEYS)
        if self.name == "topk" and self.dead_treatment == "none":
            values.pop("dead_treatment", None)  # aux_coef says it, and said it before
        return values

    @property
    def title(self) -> str:
        """For people: "n=4096", and "relu n=4096" of another architecture than TopK."""
        named = "" if self.name == "topk" else f"{self.name} "
        return f"{named}n={self.n_latents}"

    @property
    def sparsity(self) -> str:
        """For a table: "16" of k, "λ=0.05" of a penalty."""
        return sparsity_of(self.k, self.options)

    @property
    def widest_code(self) -> int:
        """Latents that may be active for a token."""
        return self.n_latents if self.k is None else self.k

    def flops_dense(self, d_model: int) -> int:
        """Training FLOPs of a token with every product dense, this architecture's own counted."""
        more = budget.more_products(self.name, dense=True)
        return budget.flops_per_token_dense(self.n_latents, d_model, more=more)

    def flops_sparse(self, d_model: int, active: float | None = None) -> int:
        """The same where only active latents are multiplied; `active` of them a token, or k."""
        more, k = budget.more_products(self.name), self.counted_k if active is None else active
        return budget.flops_per_token_sparse(self.n_latents, d_model, k, more=more)

    @property
    def has_dense_code(self) -> bool:
        """Whether a code has a value for each latent."""
        return self.k is None or self.name == "batch_topk"

    @property
    def counted_k(self) -> float:
        """Latents per token that the sparse convention of FLOPs counts."""
        return budget.decoded_pairs(self.widest_code, self.options.get("wide_k"))

    @property
    def penalty(self) -> float | None:
        """Lambda, where sparsity is paid for."""
        return self.options.get("penalty")


_LATER_AUTOENCODER_KEYS = {
    "dead_treatment": "auxk",
    "b_enc": True,
    "decoder_norm": True,
    "gradient_projection": True,
    "resample_every_steps": 0,
    "resample_until_step": 0,
    "options": {},
}
"""Keys younger than some records, with the value that those records had without saying so."""


def sparsity_of(k: int | None, options: Mapping[str, Any]) -> str:
    """What sets how many latents are active: k, else the L0 aimed at, else the penalty."""
    if k is not None:
        return str(k)
    if options.get("target_l0") is not None:
        return f"L0={options['target_l0']:g}"
    return f"λ={options['penalty']:g}" if "penalty" in options else "-"


def but_defaults(values: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    """Without the younger keys that say nothing new, so that older run ids stay what they are."""
    return {key: v for key, v in values.items() if key not in defaults or v != defaults[key]}
