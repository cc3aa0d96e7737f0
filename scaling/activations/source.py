"""What every source of activation vectors offers, and the JSON-able facts that identify one.

Shapes: B tokens in a batch, D = d_model. One token is one activation vector.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:  # the spec is read by programs that never compute
    from torch import Tensor

ID_DIGITS = 12


@dataclass(frozen=True)
class Calibration:
    """Constants measured once on a sample of the training split, the same for every run."""

    mean_D: Tensor
    """float32 [D]: the mean vector; predicting it scores a normalized MSE of 1."""
    mean_predictor_mse: float
    """Mean over tokens and over d_model of (x - mean)^2: the training loss's denominator."""


@dataclass(frozen=True)
class SourceSpec:
    """All that another process needs to open a source and to tell whether it is the same data."""

    kind: str
    """"planted", "store" or "stream"."""
    content_hash: str
    """sha256 of what the training vectors and their calibration are."""
    eval_hash: str
    """sha256 of what the held-out vectors are."""
    d_model: int
    n_train: int | None
    """Training vectors in view; None = unlimited."""
    n_eval: int
    params: dict[str, Any] = field(default_factory=dict)
    """How to open it; differs by kind. Paths appear here only, never in a hash."""
    description: dict[str, Any] = field(default_factory=dict)
    """For records and people: subject_model, layer, context, normalization, text, ..."""

    @property
    def activations_id(self) -> str:
        """Short name of the content, as records carry it."""
        return self.content_hash[:ID_DIGITS]

    @property
    def memory_bytes(self) -> int:
        """Held in the memory of each process that reads it, besides mapped files: the subject
        model and blocks of a live stream. Runs that train in one process share it."""
        return self.description.get("memory_bytes", 0)

    def to_json(self) -> dict[str, Any]:
        return {"activations_id": self.activations_id, **asdict(self)}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> SourceSpec:
        return cls(**{key: value for key, value in data.items() if key != "activations_id"})


class ActivationSource(Protocol):
    """Training vectors in a reproducible order, and a fixed held-out set.

    Nothing here has a state: a run that resumes at some step asks for that step.
    """

    @property
    def spec(self) -> SourceSpec: ...

    @property
    def calibration(self) -> Calibration: ...

    def train_batch(
        self,
        *,
        seed: int,
        step: int,
        batch_tokens: int,
        shuffle_block: int,
        replica: int = 0,
        replicas: int = 1,
    ) -> Tensor:
        """Batch `step` of the stream that `seed` orders: float32 [B, D], a pure function.

        `shuffle_block` rows are read together; it is part of the order, hence of the result.
        Of `replicas` (a divisor of batch_tokens), `replica` gets its consecutive part.
        """
        ...

    def eval_batches(self, batch_tokens: int) -> Iterator[Tensor]:
        """The held-out vectors in their fixed order, float32 [<= batch_tokens, D]."""
        ...

    def sample(self, n: int) -> Tensor:
        """The first min(n, n_train) training vectors, float32 [., D], for initialization; of a
        live stream no more than its head holds."""
        ...


def epochs(spec: SourceSpec, tokens: int) -> float | None:
    """Passes over the training vectors that `tokens` make; None where vectors are unlimited."""
    return None if spec.n_train is None else tokens / spec.n_train
