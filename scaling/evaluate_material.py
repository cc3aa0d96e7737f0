"""From a run's plan to what it is evaluated on: the harvest it was trained on, found again.

The subject model and the text are those whose content has the recorded fingerprints, wherever they
lie now. Activations that no model made are evaluated on their own held-out vectors.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from scaling.activations import embedded
from scaling.activations.build import open_source
from scaling.activations.manifest import load_manifest
from scaling.activations.request import HarvestRequest, make_request
from scaling.config import HarvestConfig
from scaling.errors import UserError
from scaling.evaluation.material import Material, VectorMaterial
from scaling.evaluation.metric import Stage
from scaling.plan import RunPlan
from scaling.storage.hashing import canonical_json


def material_key(plan: RunPlan) -> str:
    """The same for runs that are evaluated on the same text, model and layer."""
    description = plan.source.description
    if not has_text(description):
        return plan.source.eval_hash
    config = {**_launched(plan, "activations"), "data_dir": _launched(plan, "data_dir")}
    which = {key: value for key, value in config.items() if key not in _HOW_MUCH}
    return canonical_json([description.get("subject_content"), which]).decode()


_HOW_MUCH = ("max_tokens", "eval_tokens", "also_layers", "processes", "stream", "buffer_tokens")
"""Keys that change neither model nor text, nor which of its tokens are held out and kept."""


def _launched(plan: RunPlan, key: str) -> Any:
    """Of the launch's settings."""
    if key not in plan.config:
        raise UserError(
            f"the plan of {plan.run_id} does not say what {key} it was launched with: restore its "
            "plan.json."
        )
    return plan.config[key]


def has_text(description: Mapping[str, Any]) -> bool:
    """Whether a source so described came out of a language model."""
    return description.get("layer") is not None


def material_of(plan: RunPlan, options: Any, stage: Stage | None = None) -> Material:
    """What the run of that plan is evaluated on; `stage` shows what of it is being made.

    Raises:
        UserError: model, text or store are not where they were, or are others.
    """
    if not has_text(plan.source.description):
        return VectorMaterial(open_source(plan.source), options.contexts, options.batch_contexts)
    return Material(
        _request(plan, options),
        n_contexts=options.contexts,
        batch_contexts=options.batch_contexts,
        dtype=options.dtype,
        device=options.device,
        stage=stage,
    )


def _request(plan: RunPlan, options: Any) -> HarvestRequest:
    config = _harvest_config(plan, options)
    tried = list(dict.fromkeys(_data_dirs(plan, options)))
    requests = [make_request(config, data_dir) for data_dir in tried]
    for request in requests:
        if load_manifest(request.store(request.layer)) is not None:  # named by its recipe
            return request
    raise UserError(
        f"no store of recipe {requests[0].recipe.id}, layer {config.layer}, is in "
        f"{' or '.join(map(str, tried))}: either model ({config.model}) or text ({config.text}) is "
        "not what the run was trained on, then give the right ones by model=FOLDER text=FILE; or "
        "the activations lie elsewhere, then give data_dir=FOLDER; or they are gone, then launch "
        "the sweep again (its runs that are done stay done)."
    )


def _data_dirs(plan: RunPlan, options: Any) -> Iterator[Path]:
    """Where the store may be: where the user says, else where the launch said, else beside the
    store that the run read."""
    if options.data_dir is not None:
        yield Path(options.data_dir).expanduser().absolute()
        return
    yield Path(_launched(plan, "data_dir")).expanduser().absolute()
    store = Path(plan.source.params.get("path", "."))
    if store.parent.name == "activations":
        yield store.parent.parent


def _harvest_config(plan: RunPlan, options: Any) -> HarvestConfig:
    """Of the launch, with model and text where the user says that they are now."""
    activations = _launched(plan, "activations")
    if "layer" not in activations:
        activations = _of_store(plan, options)
    given = {key: getattr(options, key) for key in ("model", "text")}
    known = {field.name for field in fields(HarvestConfig)}
    values = {**activations, **{key: value for key, value in given.items() if value is not None}}
    return HarvestConfig(**{key: value for key, value in values.items() if key in known})


def _of_store(plan: RunPlan, options: Any) -> dict[str, Any]:
    """For activations=store, which says no model and no text: the store's own recipe does, but for
    where they are."""
    folder = Path(plan.config["activations"]["path"]).expanduser()
    manifest = load_manifest(folder)
    if manifest is None:
        raise UserError(f"activations.path={folder} of the run holds no store any more.")
    recipe = manifest.recipe
    packaged = {
        "model": recipe["model"] == embedded.model_fingerprint(),
        "text": recipe["text"] == embedded.text_fingerprint(),
    }
    unknown = [key for key in packaged if not packaged[key] and getattr(options, key) is None]
    if unknown:
        raise UserError(
            f"{plan.run_id} was trained with activations=store, and a store does not say where "
            f"its {' and '.join(unknown)} ({', '.join(str(manifest.names[k]) for k in unknown)}) "
            f"can be read: add {' '.join(f'{key}=PATH_OR_HUB_NAME' for key in unknown)}."
        )
    names = {key: embedded.EMBEDDED for key in packaged if packaged[key]}
    unset = {"max_tokens": 1, "eval_tokens": 1, "layer": manifest.layer}
    return {**recipe, "model": "", "text": "", **names, **unset}
