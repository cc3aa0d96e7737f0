"""Measurements as Markdown tables, one per shape, and as JSON with every step."""

from __future__ import annotations

import statistics
from dataclasses import asdict, dataclass
from typing import Any

from benchmarks.peers.contenders import REFERENCE, Kind
from benchmarks.peers.session import Measured
from benchmarks.peers.shapes import Shape

UNEVEN = 1.5
"""A turn that took this many times the median is worth a remark."""
_MB = 10**6


@dataclass(frozen=True)
class Spread:
    """Of a step's wall time, over turns; a turn of several steps counts with its median."""

    median: float
    low: float
    high: float


def wall_s(m: Measured) -> Spread:
    values = [statistics.median(turn) for turn in m.turns_wall_s]
    return Spread(statistics.median(values), min(values), max(values))


def cpu_s(m: Measured) -> float:
    """Median over turns of a step's CPU time. A turn counts with its mean: the kernel books other
    threads' time every few milliseconds, so that a short step gets too little or too much."""
    return statistics.median(statistics.mean(turn) for turn in m.turns_cpu_s)


@dataclass(frozen=True)
class ShapeResult:
    shape: Shape
    groups: list[list[str]]
    """Names of those that were alive together and took turns."""
    found: list[Measured]
    remarks: list[str]

    def table(self) -> str:
        lines = [
            f"### {self.shape.name}: {_describe(self.shape)}",
            "",
            "| | wall ms (min..max) | CPU ms | x encoder fp32 | x best peer | peak MB | own MB |",
            "|---|---|---|---|---|---|---|",
            *(self._row(measured) for measured in sorted(self.found, key=_wall)),
            "",
            *(f"{remark}  " for remark in [*self._settings(), *self.remarks]),
        ]
        return "\n".join(lines)

    def _row(self, m: Measured) -> str:
        wall = wall_s(m)
        name = f"*{m.name}*" if m.kind is Kind.floor else m.name
        cells = [
            f"**{name}**" if m is self._best_peer() else name,
            f"{_ms(wall.median)} ({_ms(wall.low)}..{_ms(wall.high)})",
            _ms(cpu_s(m)),
            _ratio(wall.median, self._reference_s()),
            _ratio(self._best_peer_s(), wall.median),
            *_memory(m),
        ]
        return "| " + " | ".join(cells) + " |"

    def _best_peer(self) -> Measured | None:
        peers = [m for m in self.found if m.kind is Kind.peer]
        return min(peers, key=_wall, default=None)

    def _best_peer_s(self) -> float | None:
        best = self._best_peer()
        return None if best is None else _wall(best)

    def _reference_s(self) -> float | None:
        return next((_wall(m) for m in self.found if m.name == REFERENCE), None)

    def _settings(self) -> list[str]:
        tiled = [m.name for m in self.found if m.ready["tiled"]]
        said = [f"Faster in tiles of 1024 x 1024, and run so: {', '.join(tiled)}."] if tiled else []
        if len(self.groups) > 1:
            later = "; then ".join(", ".join(group) for group in self.groups[1:])
            said.append(f"To fit into memory, measured after the others: {later}.")
        steps = [m for m in self.found if m.kind is not Kind.floor]
        uneven = [m.name for m in steps if wall_s(m).high > UNEVEN * wall_s(m).median]
        if uneven:
            said.append(f"Something else used the machine during some turns: {', '.join(uneven)}.")
        return said

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def _describe(shape: Shape) -> str:
    return (
        f"d_model {shape.d_model}, n_latents {shape.n_latents}, k {shape.k}, "
        f"{shape.batch_tokens} tokens, {shape.n_dead} dead latents"
    )


def _wall(m: Measured) -> float:
    return wall_s(m).median


def _ms(seconds: float) -> str:
    milliseconds = seconds * 1e3
    decimals = 0 if milliseconds >= 100 else 1 if milliseconds >= 10 else 2
    return f"{milliseconds:.{decimals}f}"


def _ratio(numerator: float | None, denominator: float | None) -> str:
    if numerator is None or denominator is None:
        return "-"
    return f"{numerator / denominator:.2f}"


def _memory(m: Measured) -> tuple[str, str]:
    if m.kind is Kind.floor or m.peak_bytes is None:
        return "-", "-"
    own = m.peak_bytes - m.ready["before_bytes"]
    return f"{m.peak_bytes / _MB:.0f}", f"{own / _MB:.0f}"
