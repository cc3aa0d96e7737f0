"""What the runs of a sweep are evaluated on: held-out text, the subject model, its residual stream.

Made once for all runs that share their activations, each part when a metric first asks for it.
Activations of no language model are held-out vectors without text: `VectorMaterial`.

Shapes: C contexts, T tokens per context, D = d_model, R = vectors kept of all contexts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from scaling.activations.contexts import Documents
from scaling.activations.held_out import HeldOut, held_out, model_folder
from scaling.activations.request import HarvestRequest
from scaling.activations.source import ActivationSource
from scaling.activations.split_subject import SplitSubject
from scaling.errors import UserError
from scaling.evaluation.metric import Stage, Told, untold

V = TypeVar("V")
ID_DIGITS = 16


@dataclass(frozen=True)
class TextBatch:
    """Some contexts with the residual stream at the autoencoder's layer, all on one device."""

    ids_CT: Tensor
    """int64."""
    residual_CTD: Tensor
    """As the subject model has it, in its dtype."""
    kept_CT: Tensor
    """bool: the tokens that autoencoders are for. Not the first positions, and no outliers."""


class Material:
    """See the module. `n_contexts` and `batch_contexts` are counted in contexts.

    Each part raises `UserError` where it cannot be had: no model, no held-out text or no kept token
    in it, values that the dtype cannot hold.
    """

    has_text = True
    """Whether there are a subject model and token ids."""
    _stage: Stage | None = None

    def __init__(
        self,
        request: HarvestRequest,
        *,
        n_contexts: int,
        batch_contexts: int,
        dtype: str | None = None,
        device: str = "cpu",
        stage: Stage | None = None,
    ) -> None:
        self.request = request
        self.device = device
        self._n_contexts = n_contexts
        self._batch_contexts = batch_contexts
        self._made: dict[str, Any] = {}
        self._dtype = dtype or request.recipe.model_dtype
        self._stage = stage

    @property
    def dtype(self) -> str:
        """Of the subject model."""
        return self._dtype

    @cached_property
    def model_folder(self) -> Path:
        return model_folder(self.request)

    @cached_property
    def subject(self) -> SplitSubject:
        return SplitSubject(
            self.model_folder, layer=self.request.layer, dtype=self._dtype, device=self.device
        )

    @cached_property
    def held_out(self) -> HeldOut:
        with self.stage("text tokenized, in characters") as told:
            return held_out(self.request, self.model_folder, self._n_contexts, told)

    @cached_property
    def ids_CT(self) -> Tensor:
        """All contexts, int64 [C, T]."""
        return torch.from_numpy(self.held_out.contexts_CT.astype("int64"))

    @cached_property
    def documents_C(self) -> Documents:
        """Which document each context is of: equal where two are of the same."""
        return self.held_out.documents_C

    @cached_property
    def units(self) -> str:
        """Names its tokens by a hash: of their contexts, and of which of them are kept."""
        digest = sha256(str(tuple(self.ids_CT.shape)).encode())
        digest.update(self.ids_CT.numpy().tobytes())
        for batch in self.batches():
            digest.update(batch.kept_CT.cpu().numpy().tobytes())
        return digest.hexdigest()[:ID_DIGITS]

    def stage(self, what: str) -> AbstractContextManager[Told]:
        """Shows that this is being done, which may take long and is shared by all runs."""
        return nullcontext(untold) if self._stage is None else self._stage(what)

    def once(self, name: str, make: Callable[[Material], V]) -> V:
        """What `make` gives, the same for all runs: made at the first call of that name."""
        if name not in self._made:
            self._made[name] = make(self)
        return self._made[name]

    def with_contexts(self, n_contexts: int) -> Material:
        """The same with more or less text, for a metric that needs another amount; the subject
        model is the same one."""
        if n_contexts == self._n_contexts:
            return self
        return self.once(f"{n_contexts} contexts", lambda one: one._with(n_contexts))

    def _with(self, n_contexts: int) -> Material:
        other = Material(
            self.request,
            n_contexts=n_contexts,
            batch_contexts=self._batch_contexts,
            dtype=self._dtype,
            device=self.device,
            stage=self._stage,
        )
        other.subject = self.subject
        return other

    def batches(self) -> Iterator[TextBatch]:
        """All contexts in their order; the residual stream is computed once and kept."""
        yield from self._batches

    @cached_property
    def _batches(self) -> list[TextBatch]:
        found, done, total = [], 0, len(self.ids_CT)
        with self.stage("subject model's residual stream, in contexts") as told:
            for ids_CT in self.ids_CT.split(self._batch_contexts):
                found.append(self._batch(ids_CT))
                done += len(ids_CT)
                told(done, total)
        if not any(bool(batch.kept_CT.any()) for batch in found):
            raise UserError(
                f"none of the {self.ids_CT.numel()} tokens of the held-out contexts is one that "
                "autoencoders are for: raise contexts."
            )
        return found

    def _batch(self, ids_CT: Tensor) -> TextBatch:
        residual_CTD = self.subject.residual(ids_CT)
        if not residual_CTD.isfinite().all():
            raise UserError(
                f"dtype={self._dtype}: the subject model's residual stream after layer "
                f"{self.request.layer} has values beyond that dtype. Use dtype=bfloat16 or float32."
            )
        return TextBatch(ids_CT.to(residual_CTD.device), residual_CTD, self.kept(residual_CTD))

    def kept(self, residual_CTD: Tensor) -> Tensor:
        """Which tokens are such as training vectors were, bool [C, T]."""
        kept_CT = residual_CTD.float().norm(dim=2) <= self.held_out.max_norm
        kept_CT[:, : self.held_out.drop_positions] = False
        return kept_CT


class VectorMaterial(Material):
    """Held-out vectors of a source without text, in batches as of contexts of 64 tokens whose ids
    are all 0 and which are all kept. Whoever asks for a subject model meets `UserError`."""

    has_text = False

    def __init__(self, source: ActivationSource, n_contexts: int, batch_contexts: int) -> None:
        self.device = "cpu"
        self._source = source
        self._n_contexts = n_contexts
        self._batch_contexts = batch_contexts
        self._made = {}

    @cached_property
    def subject(self) -> SplitSubject:
        raise UserError("these activations are of no language model.")

    @cached_property
    def units(self) -> str:
        return f"{self._source.spec.eval_hash[:ID_DIGITS]} {len(self.ids_CT)}"

    @cached_property
    def ids_CT(self) -> Tensor:
        return torch.cat([batch.ids_CT for batch in self._batches])

    @cached_property
    def _batches(self) -> list[TextBatch]:
        wanted = self._n_contexts * _VECTORS
        batch, found = [], 0
        for x_RD in self._source.eval_batches(self._batch_contexts * _VECTORS):
            x_RD = x_RD[: wanted - found]
            whole = len(x_RD) - len(x_RD) % _VECTORS
            if not whole:
                break
            batch.append(_without_text(x_RD[:whole]))
            found += whole
        if not batch:
            raise UserError(
                f"fewer than {_VECTORS} vectors are held out of these activations: raise "
                "activations.eval_tokens and launch the sweep again."
            )
        return batch


_VECTORS = 64


def _without_text(x_RD: Tensor) -> TextBatch:
    x_CTD = x_RD.reshape(-1, _VECTORS, x_RD.shape[1])
    shape = x_CTD.shape[:2]
    return TextBatch(torch.zeros(shape, dtype=torch.int64), x_CTD, torch.ones(shape).bool())
