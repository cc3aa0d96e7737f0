"""What identifies a live stream, and the files it is opened from.

Its training vectors are known only as they are made. What is hashed instead is all that determines
them: the recipe, the token ids, the blocks, and the stored head, whose own vectors and calibration
are the word of the machine that made them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from scaling.activations import embedded
from scaling.activations.manifest import NUMPY_DTYPES, Manifest, load_manifest
from scaling.activations.recipe import Recipe, is_local_model, model_fingerprint
from scaling.activations.request import HarvestRequest
from scaling.activations.source import SourceSpec
from scaling.activations.store import store_spec, verify_view
from scaling.activations.stream_contexts import contexts_sha256, verify_contexts
from scaling.activations.stream_shape import SPARE, STREAM_VERSION, StreamShape
from scaling.errors import UserError
from scaling.storage.hashing import canonical_json, sha256_hex

BLOCKS_IN_MEMORY = 3
"""Two that were given out and the one being made."""
FORWARD_BYTES = 400 * 2**20
"""transformers, and what a forward pass holds for a moment."""


def stream_spec(request: HarvestRequest) -> SourceSpec:
    """The spec of the stream that `request` describes, whose head and token ids are there.

    Raises:
        UserError: more outliers than a stream has room for.
    """
    assert request.shape is not None
    folder = request.store(request.layer)
    manifest = load_manifest(folder)
    assert manifest is not None
    wanted = request.wanted
    head = store_spec(folder, manifest, n_train=wanted["train"], n_eval=wanted["eval"])
    share = _outlier_share(manifest)
    _check_outliers(share, manifest)
    return SourceSpec(
        kind="stream",
        content_hash=_content_hash(head, request.contexts, request.shape),
        eval_hash=head.eval_hash,
        d_model=head.d_model,
        n_train=request.shape.n_train,
        n_eval=head.n_eval,
        params={
            "head": head.to_json(),
            "contexts": str(request.contexts.absolute()),
            "shape": asdict(request.shape),
            **_model_place(request),
        },
        description=_describe(head, request, share),
    )


def head_of(spec: SourceSpec) -> SourceSpec:
    """The stored view that calibrates, initializes and evaluates the stream's runs."""
    return SourceSpec.from_json(spec.params["head"])


def shape_of(spec: SourceSpec) -> StreamShape:
    return StreamShape(**spec.params["shape"])


def verify_stream(spec: SourceSpec, progress: Callable[[int, int], None]) -> None:
    """Check every stored byte that runs will read; `progress` gets bytes, total.

    Raises:
        UserError: something is missing or changed.
    """
    verify_contexts(Path(spec.params["contexts"]))
    verify_view(head_of(spec), progress)


def check_same(spec: SourceSpec, recipe: Recipe) -> None:
    """The stream that is found must be the one that was planned.

    Raises:
        UserError: token ids or model are gone, or are others.
    """
    contexts = Path(spec.params["contexts"])
    if _content_hash(head_of(spec), contexts, shape_of(spec)) != spec.content_hash:
        raise UserError(
            f"the token ids in {contexts} are not those that the run was planned with "
            f"({spec.activations_id}): plan the run again under another sweep_name, or put the "
            "old ones back."
        )
    model, revision = spec.params["model"], spec.params["revision"]
    if model_fingerprint(model, revision) != recipe.model:
        raise UserError(
            f"activations.model={model!r} has changed since the run was planned: put the old model "
            "back, or plan the run again under another sweep_name."
        )


def memory_bytes(request: HarvestRequest) -> int:
    """What a stream holds in a process that reads it: the subject model and its blocks.

    The model is loaded whole, before the blocks behind the layer are dropped.
    """
    assert request.shape is not None
    recipe, manifest = request.recipe, load_manifest(request.store(request.layer))
    if manifest is None:
        (d_model, _), n_params = request.model_shape, request.subject_params
    else:  # spares a launch the loading of model code
        d_model, n_params = manifest.d_model, manifest.names["params"]
    weights = n_params * NUMPY_DTYPES[recipe.model_dtype].itemsize
    row_bytes = d_model * NUMPY_DTYPES[recipe.store_dtype].itemsize + 8  # and its place in order
    return weights + BLOCKS_IN_MEMORY * request.shape.block_rows * row_bytes + FORWARD_BYTES


def _content_hash(head: SourceSpec, contexts: Path, shape: StreamShape) -> str:
    content = {
        "kind": "stream",
        "stream_version": STREAM_VERSION,
        "head": head.content_hash,
        "contexts": contexts_sha256(contexts),
        "shape": shape.identity,
    }
    return sha256_hex(canonical_json(content))


def _model_place(request: HarvestRequest) -> dict[str, str | None]:
    """Model as it identifies itself, and where to load it from."""
    if request.model == embedded.EMBEDDED:
        folder = str(embedded.model_folder(request.data_dir).absolute())
        return {"model": embedded.EMBEDDED, "revision": None, "model_path": folder}
    path = request.model_path
    if is_local_model(request.model):
        path = str(Path(path).absolute())
    return {"model": path, "revision": request.revision, "model_path": path}


def _describe(head: SourceSpec, request: HarvestRequest, outlier_share: float) -> dict[str, Any]:
    shape = request.shape
    assert shape is not None
    described = {key: value for key, value in head.description.items() if key != "dropped"}
    stream = {
        "buffer_tokens": shape.buffer_tokens,
        "blocks": shape.n_blocks,
        "block_contexts": shape.block_contexts,
        "cut_share": shape.cut_share,
        "head_tokens": head.n_train,
        "head_dropped": head.description["dropped"],
        "head_outlier_share": outlier_share,
    }
    return {**described, "stream": stream, "memory_bytes": memory_bytes(request)}


def _outlier_share(manifest: Manifest) -> float:
    outliers = sum(segment.dropped_outlier for segment in manifest.train)
    surplus = sum(segment.dropped_surplus for segment in manifest.train)
    return outliers / (manifest.n_rows("train") + surplus + outliers)


def _check_outliers(share: float, manifest: Manifest) -> None:
    if share > 1 / (2 * SPARE):
        raise UserError(
            f"activations.outlier_factor={manifest.recipe['outlier_factor']:g} leaves out "
            f"{share:.2%} of the vectors, and activations.stream=true has room for "
            f"{1 / (2 * SPARE):.2%}: raise outlier_factor, or store the vectors "
            "(activations.stream=false)."
        )
