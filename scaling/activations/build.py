"""From a user's `activations` config to a source: describe, prepare, open.

The only module of this package that others call. Heavy imports (torch, transformers) happen inside
the branch that needs them, so that planning over a finished store costs little.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scaling.activations.embedded import EMBEDDED, check_model_package
from scaling.activations.manifest import load_manifest
from scaling.activations.progress import Meter, Progress, ProgressCallback
from scaling.activations.request import HarvestRequest, make_request
from scaling.activations.source import ActivationSource, SourceSpec
from scaling.activations.store import StoreSource, store_spec, verify_view
from scaling.activations.stream_spec import memory_bytes, stream_spec, verify_stream
from scaling.errors import UserError

if TYPE_CHECKING:
    from scaling.config import ActivationsConfig, StoreConfig

__all__ = ["Description", "Progress", "describe", "made_live", "open_source", "prepare"]


@dataclass(frozen=True)
class Description:
    """What a source is and what it would still cost, found out without computing anything."""

    d_model: int
    n_train: int | None
    """Training vectors the runs will see; None = unlimited."""
    n_eval: int
    ready: bool
    """Nothing to harvest: `spec` is known."""
    spec: SourceSpec | None
    harvest_tokens_missing: int = 0
    disk_bytes_needed: int = 0
    disk_bytes_free: int = 0
    memory_bytes: int = 0
    """Held in the memory of each process that reads it: the subject model and blocks of a stream;
    runs that train in one process share it."""
    note: str = ""
    """What else a preview should say."""


def describe(config: ActivationsConfig, data_dir: Path) -> Description:
    """What `config` asks for and what is missing; computes and writes nothing.

    Raises:
        UserError: for anything wrong that can be seen now: a missing model folder or text, a layer
            the model does not have, a disk too small.
    """
    from scaling.config import HarvestConfig, PlantedConfig, StoreConfig

    match config:
        case PlantedConfig():
            from scaling.activations.planted import planted_spec

            return _ready(planted_spec(config))
        case StoreConfig():
            return _ready(_existing_store(config))
        case HarvestConfig():
            return _describe_harvest(make_request(config, data_dir))
        case _:
            raise _unknown(config)


def prepare(
    config: ActivationsConfig,
    data_dir: Path,
    *,
    progress: ProgressCallback,
    verify: bool = True,
    nodes: int = 1,
) -> SourceSpec:
    """Make the source exist (harvest what is missing) and return its spec.

    With `verify`, every byte that runs will read is checked against its recorded hash. Of `nodes`
    above 1, the others call `help_prepare` meanwhile.

    Raises:
        UserError: as `describe`, and for corrupt shards, non-finite activations, a full disk, or
            text too short for `activations.max_tokens`.
    """
    from scaling.config import HarvestConfig, PlantedConfig, StoreConfig

    match config:
        case PlantedConfig():
            from scaling.activations.planted import planted_spec

            return planted_spec(config)
        case StoreConfig():
            spec = _existing_store(config)
        case HarvestConfig():
            request = make_request(config, data_dir, nodes=nodes)
            if not request.is_complete():
                from scaling.activations.harvest import ensure_stores

                ensure_stores(request, progress)
            spec = _harvested(request)
        case _:
            raise _unknown(config)
    if verify:
        meter = Meter(progress)
        check = verify_stream if spec.kind == "stream" else verify_view
        check(spec, lambda done, total: meter.tell("verify", done, total, "bytes"))
    return spec


def help_prepare(config: ActivationsConfig, data_dir: Path, node: int) -> None:
    """Make parts for a `prepare` on another node, until it has ended or all is there.

    The node that prepares is 0. Returns at once where there is nothing to harvest.
    """
    from scaling.config import HarvestConfig

    if isinstance(config, HarvestConfig):
        from scaling.activations.harvest import help_stores

        help_stores(make_request(config, data_dir), node)


def open_source(spec: SourceSpec) -> ActivationSource:
    """Open a prepared source for reading; any number of processes may.

    Raises:
        UserError: where the store is gone or is not the one the spec names.
    """
    match spec.kind:
        case "planted":
            from scaling.activations.planted import PlantedSource

            return PlantedSource(spec)
        case "store":
            return StoreSource(spec)
        case "stream":
            from scaling.activations.stream import open_stream

            return open_stream(spec)
        case _:
            raise UserError(
                f"activations kind {spec.kind!r} is unknown: use planted, store or stream."
            )


def made_live(source: ActivationSource) -> dict[str, int] | None:
    """Vectors that a live stream has made in this process, and left out by reason; None for other
    sources."""
    if source.spec.kind != "stream":
        return None
    from scaling.activations.stream import StreamSource

    assert isinstance(source, StreamSource)
    return source.counts.to_json()


def _ready(spec: SourceSpec) -> Description:
    return Description(
        d_model=spec.d_model, n_train=spec.n_train, n_eval=spec.n_eval, ready=True, spec=spec
    )


def _existing_store(config: StoreConfig) -> SourceSpec:
    folder = Path(config.path).expanduser()
    manifest = load_manifest(folder)
    if manifest is None:
        raise UserError(
            f"activations.path={config.path!r} is not an activation store (it has no "
            "manifest.json): give the folder of one, DATA_DIR/activations/...-layerL."
        )
    return store_spec(folder, manifest, n_train=config.max_tokens, n_eval=config.eval_tokens)


def _describe_harvest(request: HarvestRequest) -> Description:
    if request.is_complete():
        return replace(_ready(_harvested(request)), **_live(request))
    missing = request.missing()
    request.check_layers()
    request.check_disk()
    if request.model == EMBEDDED:
        check_model_package()
    return Description(
        d_model=request.model_shape[0],
        n_train=request.n_train,
        n_eval=request.wanted["eval"],
        ready=False,
        spec=None,
        harvest_tokens_missing=max((sum(rows.values()) for rows in missing.values()), default=0),
        disk_bytes_needed=request.disk_bytes_needed(),
        disk_bytes_free=request.disk_bytes_free(),
        **_live(request),
    )


def _live(request: HarvestRequest) -> dict[str, Any]:
    """What a description says of a stream, beyond its head."""
    if request.shape is None:
        return {}
    held = memory_bytes(request)
    note = (
        f"Live: {request.n_train:,} training vectors per epoch are made as training goes and not "
        f"stored. Subject model and blocks take about {held / 2**30:.2f} GiB in each process; the "
        "time that the model takes is not in the estimates."
    )
    return {"memory_bytes": held, "note": note}


def _harvested(request: HarvestRequest) -> SourceSpec:
    if request.shape is not None:
        return stream_spec(request)
    folder = request.store(request.layer)
    manifest = load_manifest(folder)
    assert manifest is not None
    wanted = request.wanted
    return store_spec(folder, manifest, n_train=wanted["train"], n_eval=wanted["eval"])


def _unknown(config: ActivationsConfig) -> UserError:
    return UserError(
        f"activations of type {type(config).__name__} are unknown: use activations=planted, "
        "embedded, store or hf."
    )
