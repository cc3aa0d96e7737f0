"""The keys of `python -m scaling.evaluate`, as KEY=VALUE on its command line."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, make_dataclass
from typing import Any

from omegaconf import ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from scaling.errors import UserError
from scaling.evaluation.registry import METRICS


@dataclass
class Common:
    """What all metrics share."""

    metrics: list[str] = field(default_factory=lambda: list(METRICS))
    contexts: int = 128
    """Held-out contexts; all there are where the text has fewer."""
    batch_contexts: int = 8
    """Contexts in one pass of the subject model: memory against speed, no identity."""
    averaged: bool = False
    """Evaluate the averaged weights."""
    dtype: str | None = None
    """Of the subject model: float32, bfloat16 or float16; null = as harvested."""
    device: str = "cpu"
    data_dir: str | None = None
    """Where activations and models are; null = where the launch had them."""
    model: str | None = None
    """Where the subject model is now; null = where the launch had it. Its content must be the
    same."""
    text: str | None = None
    """The same of the text."""


LARGEST = 2**31 - 1
"""Of whole numbers: beyond it no count is meant, and some would not fit into a tensor's size."""


def options_of(metrics: Mapping[str, tuple[object, type[Any]]]) -> Any:
    """A dataclass: `Common`, and for each metric its own under its name: downstream.KEY=VALUE."""
    own = [(name, kind, field(default_factory=kind)) for name, (_, kind) in metrics.items()]
    return make_dataclass("Options", own, bases=(Common,))


Options = options_of(METRICS)


def parsed(overrides: Sequence[str]) -> Any:
    """The options with KEY=VALUE applied.

    Raises:
        UserError: a key that there is not, a value of another type, a metric that there is not.
    """
    schema = OmegaConf.structured(Options)
    for override in overrides:
        key, equals, _ = override.partition("=")
        if not equals:
            raise UserError(f"{override}: give KEY=VALUE, or the folder of a run or a sweep.")
        if key not in (known := _keys(Options())):
            near = difflib.get_close_matches(key, known, n=1)
            hint = f" Did you mean {near[0]}?" if near else f" Known are {', '.join(known)}."
            raise UserError(f"{key} is not a key of an evaluation.{hint}")
        try:
            schema = OmegaConf.merge(schema, _given(schema, override))
            OmegaConf.to_object(schema)  # what it refers to is looked up only here
        except (OmegaConfBaseException, YAMLError) as error:
            why = " ".join(str(error).partition("full_key:")[0].split())
            raise UserError(f"{override}: {why}") from error
        _check_value(override, OmegaConf.select(schema, key))
    options: Any = OmegaConf.to_object(schema)
    _check(options)
    return options


def known_keys() -> list[str]:
    """Every KEY=VALUE with its default, for people."""
    options = Options()
    shown = OmegaConf.create(OmegaConf.to_container(OmegaConf.structured(options)))
    return [f"{key}={_shown(OmegaConf.select(shown, key))}" for key in _keys(options)]


def _shown(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return ",".join(map(str, value)) if isinstance(value, ListConfig) else str(value)


def _check_value(override: str, value: Any) -> None:
    """Refuses what has the right type and is no value all the same."""
    if override.partition("=")[2].strip() == "???":
        raise UserError(f"{override}: ??? is no value. Leave the key out for its default.")
    if isinstance(value, ListConfig) and not all(isinstance(one, str) for one in value):
        raise UserError(f"{override}: give names with commas, not lists of lists.")
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"{override}: give a finite number.")
    if not isinstance(value, int):
        return
    if abs(value) > LARGEST:
        raise UserError(f"{override}: give a number of at most {LARGEST:,}.")
    if override.partition("=")[0].endswith("seed") and value < 0:
        raise UserError(f"{override}: give a seed of at least 0.")


def _check(options: Any) -> None:
    for name in options.metrics:
        if name not in METRICS:
            raise UserError(f"metrics={name}: there is none; known are {', '.join(METRICS)}.")
    if not options.metrics:
        raise UserError(f"metrics= names none; known are {', '.join(METRICS)}.")
    for key in ("contexts", "batch_contexts"):
        if getattr(options, key) < 1:
            raise UserError(f"{key}={getattr(options, key)} must be at least 1.")
    if options.device not in ("cpu", "cuda"):
        raise UserError(f"device={options.device}: use cpu or cuda.")
    if options.dtype not in (None, "float32", "bfloat16", "float16"):
        raise UserError(f"dtype={options.dtype}: use float32, bfloat16, float16 or null.")


def _given(schema: Any, override: str) -> Any:
    """KEY=VALUE alone. A list may go without its brackets: metrics=a,b."""
    key, _, value = override.partition("=")
    if value.startswith("[") or not isinstance(OmegaConf.select(schema, key), ListConfig):
        return OmegaConf.from_dotlist([override])
    given = OmegaConf.create()
    # Not as YAML in brackets, to which a name that begins with * is a reference.
    OmegaConf.update(given, key, [one.strip() for one in value.split(",") if one.strip()])
    return given


def _keys(options: Any, prefix: str = "") -> list[str]:
    keys: list[str] = []
    for one in fields(options):
        value = getattr(options, one.name)
        own = f"{prefix}{one.name}"
        keys += _keys(value, f"{own}.") if is_dataclass(value) else [own]
    return keys
