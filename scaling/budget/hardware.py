"""What a machine can do: the numbers of conf/hardware/*.yaml, each with its source there."""

from __future__ import annotations

import difflib
from dataclasses import dataclass, fields
from pathlib import Path

import yaml

from scaling.errors import UserError

FOLDER = Path(__file__).resolve().parents[2] / "conf" / "hardware"


@dataclass(frozen=True, kw_only=True)
class Hardware:
    """One kind of rank (a GPU, or a process on some cores) and what joins such ranks."""

    name: str
    device: str
    """cpu or cuda."""
    threads: int
    """Of a rank, on CPU."""
    memory_bytes: float
    """That a rank may use on its device."""
    bf16_flops_per_s: float
    """Peak of the products with bf16 operands."""
    float32_flops_per_s: float
    float64_flops_per_s: float
    encoder_share: float
    """Of the peak, reached by the encoder's products with the selection."""
    auxiliary_share: float
    """Of the peak, reached by AuxK's products with the selection."""
    memory_bytes_per_s: float
    memory_share: float
    """Reached by gathers and by the optimizer."""
    ranks_per_node: int
    node_bytes_per_s: float
    """Between ranks of a node: sent by one rank."""
    node_share: float
    node_latency_s: float
    """Of one hop of a collective."""
    network_bytes_per_s: float
    """Between nodes, sent: per rank of the node (its own adapter)."""
    network_share: float
    network_latency_s: float

    def encoder_flops_per_s(self, precision: str) -> float:
        return self.encoder_share * self._peak(precision)

    def auxiliary_flops_per_s(self, precision: str) -> float:
        return self.auxiliary_share * self._peak(precision)

    def _peak(self, precision: str) -> float:
        return float(getattr(self, f"{precision}_flops_per_s"))


def hardware_names() -> list[str]:
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def load_hardware(name: str) -> Hardware:
    """The model called `name`.

    Raises:
        UserError: there is none, or its file lacks a number.
    """
    path = FOLDER / f"{name}.yaml"
    if name not in hardware_names():
        near = difflib.get_close_matches(name, hardware_names(), n=1)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise UserError(
            f"hardware={name} is not one of {', '.join(hardware_names())}.{hint} A model of your "
            f"own is one more file in {FOLDER}."
        )
    return _checked(path, yaml.safe_load(path.read_text()))


def _checked(path: Path, values: dict[str, object]) -> Hardware:
    kinds = {field.name: field.type for field in fields(Hardware)}
    if wrong := sorted(set(kinds) ^ set(values)):
        raise UserError(
            f"{path}: {', '.join(wrong)} missing or unknown. It must have exactly the keys of "
            "scaling/budget/hardware.py."
        )
    # float(): YAML 1.1 takes 1e9 without a point for a word.
    convert = {"float": float, "int": int, "str": str}
    try:
        return Hardware(**{name: convert[str(kinds[name])](values[name]) for name in kinds})  # type: ignore[arg-type]
    except (TypeError, ValueError) as error:
        raise UserError(f"{path}: {error}. Every key but name and device is a number.") from error
