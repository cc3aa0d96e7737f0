"""The held-out text of a harvest, as token ids: what a run's latents are looked at on.

The contexts come in the order in which held-out vectors are harvested, so those of a small request
begin those of a larger one, and all are of documents that no training vector is of.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from scaling.activations import embedded
from scaling.activations.contexts import Contexts, Documents, tokenize, with_total
from scaling.activations.manifest import load_manifest
from scaling.activations.request import HarvestRequest
from scaling.activations.stream_contexts import has_contexts, read_contexts, write_contexts
from scaling.errors import UserError
from scaling.storage.atomic import write_bytes

DOCUMENTS = "documents.npy"
"""Beside the contexts: which document each is of."""


@dataclass(frozen=True)
class HeldOut:
    """Contexts with what tells which of their tokens an autoencoder is for."""

    contexts_CT: Contexts
    documents_C: Documents
    """Which document each is of: equal where two are of the same."""
    drop_positions: int
    """First positions that were no training vectors."""
    max_norm: float
    """Vectors above it were left out of training."""


def model_folder(request: HarvestRequest) -> Path:
    """The subject model as a folder: converted at the harvest, or as the hub's cache has it.

    Raises:
        UserError: it is not there.
    """
    if request.model == embedded.EMBEDDED:
        folder = embedded.model_folder(request.data_dir)
        if not folder.exists():
            raise UserError(
                f"the packaged model is not in data_dir={request.data_dir}: give the data_dir of "
                "the launch, or launch the sweep again (its runs that are done stay done)."
            )
        return folder
    from scaling.activations.subject import ModelLocation, local_folder

    return local_folder(ModelLocation(request.model_path, request.revision))


def held_out(
    request: HarvestRequest, model: Path, n_contexts: int, told: Callable[[int, int], None]
) -> HeldOut:
    """The first `n_contexts` held-out contexts, or all there are; tokenized once and kept.

    `told` gets the characters read, and how many there may be to read.

    Raises:
        UserError: the store of the harvest is gone, or the text holds out no context.
    """
    manifest = load_manifest(request.store(request.layer))
    if manifest is None:
        raise UserError(
            f"there is no store in {request.store(request.layer)}: give the data_dir of the "
            "launch, or launch the sweep again (its runs that are done stay done)."
        )
    folder = request.data_dir / "activations" / f"{request.recipe.id}-held-out{n_contexts}"
    found = _kept(folder)
    if found is None:
        found = _tokenized(request, model, n_contexts, told)
        # A full disk, a folder of another's, another process at it: to keep them saves time alone.
        with suppress(OSError, UserError):
            _keep(folder, *found)
    contexts_CT, documents_C = found
    return HeldOut(
        contexts_CT=contexts_CT,
        documents_C=documents_C,
        drop_positions=request.recipe.drop_positions,
        max_norm=request.recipe.outlier_factor * manifest.median_norm,
    )


def _tokenized(
    request: HarvestRequest, model: Path, n_contexts: int, told: Callable[[int, int], None]
) -> tuple[Contexts, Documents]:
    from scaling.activations.subject import Tokenizer

    wanted = {"train": 0, "eval": n_contexts}
    progress = with_total(request.text, told)
    found = tokenize(request.text, Tokenizer(model), request.recipe, wanted, progress)
    contexts_CT = found.contexts["eval"][:n_contexts]
    assert found.eval_documents is not None, "it was tokenized just now"
    if not len(contexts_CT):
        raise UserError(
            f"activations.text={request.text.name!r} has no held-out context of "
            f"{request.recipe.context} tokens."
        )
    return contexts_CT, found.eval_documents[:n_contexts]


def _kept(folder: Path) -> tuple[Contexts, Documents] | None:
    """None where one of them was not kept, or cannot be read: the text is tokenized again then."""
    if not has_contexts(folder):
        return None
    try:
        contexts_CT, documents_C = read_contexts(folder), np.load(folder / DOCUMENTS)
    except (OSError, EOFError, ValueError, UserError):
        return None
    return (contexts_CT, documents_C) if documents_C.shape == contexts_CT.shape[:1] else None


def _keep(folder: Path, contexts_CT: Contexts, documents_C: Documents) -> None:
    """Contexts that are there stay as they are: another process may be reading them."""
    if not _are_kept(folder, contexts_CT):
        write_contexts(folder, contexts_CT)
    content = io.BytesIO()
    np.save(content, documents_C)
    write_bytes(folder / DOCUMENTS, content.getvalue())


def _are_kept(folder: Path, contexts_CT: Contexts) -> bool:
    if not has_contexts(folder):
        return False
    try:
        return np.array_equal(read_contexts(folder), contexts_CT)
    except UserError:
        return False
