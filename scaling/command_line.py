"""The command line as Hydra reads it: its points as typed configs, its mistakes explained."""

from __future__ import annotations

import difflib
import os
import re
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path

import hydra
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from scaling.autoencoder_config import ARCHITECTURES
from scaling.config import (
    ActivationsConfig,
    LauncherConfig,
    RunConfig,
    register,
    to_run_configs,
)
from scaling.errors import UserError
from scaling.sweep_config import KEYS_OF_A_POINT

_NOISE = ("reference_type", "object_type", "To append to your config", "Set the environment")
_WHERE = "All keys: python launch.py --cfg job, or scaling/config.py."
_GROUPS: dict[str, list[type]] = {
    "autoencoder": [*ARCHITECTURES.values()],
    "activations": ActivationsConfig.__subclasses__(),
    "launcher": LauncherConfig.__subclasses__(),
}
"""The schemas that the options of a config group may have."""
_NAMES = {schema: f"autoencoder={name}" for name, schema in ARCHITECTURES.items()}


def compose_points(root: Path) -> list[RunConfig]:
    """The points that the process's arguments describe; none where Hydra answered itself (--help).

    `root` holds conf/ and sweeps/.

    Raises:
        UserError: an unknown key or option, a wrong type, a value that is missing.
    """
    register()
    composed: list[DictConfig] = []
    collect = hydra.main(version_base="1.3", config_path=str(root / "conf"), config_name="config")
    os.environ["HYDRA_FULL_ERROR"] = "1"  # have Hydra raise; we explain
    with tempfile.TemporaryDirectory() as hydra_dir:
        os.environ["SCALING_ROOT"] = str(root)  # where conf/ finds sweeps/, whatever the cwd
        os.environ["SCALING_HYDRA_DIR"] = hydra_dir  # Hydra's own notes: plan.json has it all
        try:
            collect(composed.append)()
        except (HydraException, OmegaConfBaseException, ValueError) as error:
            raise UserError(explain(error)) from error
    try:
        return [point for config in composed for point in to_run_configs(config)]
    except UserError as error:
        if _is_sweep_without_m(sys.argv[1:]):
            raise UserError(
                f"{error} A sweep is launched with -m: launch.py -m sweeps=NAME"
            ) from error
        raise


def _is_sweep_without_m(arguments: Sequence[str]) -> bool:
    """Whether a sweep file was given but not launched as one: its lists were not read then."""
    launched = {"-m", "--multirun"} & {*arguments}
    return not launched and any(argument.startswith("sweeps=") for argument in arguments)


def explain(error: BaseException) -> str:
    """Hydra's error as one paragraph, with the nearest key where one is misspelled."""
    messages = [str(e) for e in (error, error.__cause__) if e is not None]
    of_cell = re.search(r"Key '([^']+)' not in 'SweepPoint'", " ".join(messages))
    if of_cell is not None:
        return (
            f"sweep.points: {of_cell[1]} is not a key of a cell. A cell has "
            f"{', '.join(KEYS_OF_A_POINT)}. {_WHERE}"
        )
    unknown = re.search(r"Could not override '([^']+)'", messages[0])
    if unknown is not None:
        return f"{unknown[1]} is not a key of this configuration.{_hint(unknown[1])} {_WHERE}"
    return f"{'. '.join(map(_sentence, messages))}. {_WHERE}"


def _sentence(message: str) -> str:
    """The informative lines of a Hydra message, joined."""
    lines = [line.strip() for line in message.splitlines()]
    end = lines.index("Config search path:") if "Config search path:" in lines else len(lines)
    kept = [line for line in lines[:end] if line and not line.startswith(_NOISE)]
    return " ".join(line for line in kept if not line.endswith("_schema"))


def _hint(unknown: str) -> str:
    group, _, name = unknown.partition(".")
    options = _GROUPS.get(group, ())
    owners = [option for option in options if name in {f.name for f in fields(option)}]
    if owners:
        owners = [_NAMES.get(option, option.__name__) for option in owners]
        return f" It belongs to another option of the group {group} ({', '.join(owners)})."
    if unknown in known_keys():
        return " It cannot be given on the command line, only in a sweep file."
    near = difflib.get_close_matches(unknown, sorted({*known_keys()}), n=2, cutoff=0.6)
    return f" Did you mean {' or '.join(near)}?" if near else ""


def known_keys(schema: type = RunConfig, prefix: str = "") -> Iterator[str]:
    """Full names of the keys of a config dataclass and of those within it, all options."""
    for field in fields(schema):
        name, default = f"{prefix}{field.name}", field.default_factory
        inner = _GROUPS.get(field.name) or ([default] if isinstance(default, type) else [])
        nested = [option for option in inner if is_dataclass(option)]
        for option in nested:
            yield from known_keys(option, f"{name}.")
        if not nested:
            yield name
