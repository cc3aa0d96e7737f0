"""Who takes part: where each contender's code is, what runs it, how much memory it is given."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum, auto

from benchmarks.peers import encoder, ours
from benchmarks.peers.shapes import Shape

PROCESS_BYTES = 450 * 2**20
"""Python, torch and a package, with the batches."""


class Kind(StrEnum):
    ours = auto()
    floor = auto()
    """A bare matmul, not a training step."""
    peer = auto()


@dataclass(frozen=True, kw_only=True)
class Entry:
    name: str
    kind: Kind
    module: str
    env: str | None = None
    """Environment of a peer (see install.py); None = the interpreter that runs the benchmark."""
    pre_acts: float = 0.0
    """Tensors of [B, N] alive at once at most, about; 2 more where latents are dead."""
    gathers: float = 0.0
    """Tensors of [B, K, D] alive at once at most, about."""

    def expected_bytes(self, shape: Shape) -> int:
        """About its peak: the process, weights with gradients and moments, activations."""
        matrices = (2 if self.kind is Kind.floor else 8) * shape.n_latents * shape.d_model
        n_pre_acts = self.pre_acts + (2 if shape.n_dead and self.kind is Kind.peer else 0)
        pre_acts = n_pre_acts * shape.batch_tokens * shape.n_latents
        gathered = self.gathers * shape.batch_tokens * shape.k * shape.d_model
        return PROCESS_BYTES + int(4 * (matrices + pre_acts + gathered))


def _ours(name: str) -> Entry:
    return Entry(name=name, kind=Kind.ours, module=ours.__name__, pre_acts=0.2, gathers=0.2)


def _floor(name: str) -> Entry:
    return Entry(name=name, kind=Kind.floor, module=encoder.__name__, pre_acts=1)


def _peer(name: str, env: str, pre_acts: float, gathers: float = 0.0) -> Entry:
    module = f"benchmarks.peers.{env}_step"
    return Entry(
        name=name, kind=Kind.peer, module=module, env=env, pre_acts=pre_acts, gathers=gathers
    )


REFERENCE = "encoder_fp32"
ENTRIES = [
    *(_ours(name) for name in ours.BUILDERS),
    _floor(REFERENCE),
    _peer("sparsify", "sparsify", 1, gathers=1.5),
    _peer("sae_lens_sparse", "sae_lens", 2, gathers=0.6),
    *(_floor(name) for name in encoder.BUILDERS if name != REFERENCE),
    _peer("dictionary_learning", "dictionary_learning", 4),
    _peer("sae_lens", "sae_lens", 8),
]
"""If they do not all fit into memory at once, those that stand first run side by side: what
matters most first, the heaviest last."""


def select(names: list[str] | None) -> list[Entry]:
    """Entries by name, in the order of ENTRIES; None = all."""
    known = {entry.name: entry for entry in ENTRIES}
    for name in names or []:
        if name not in known:
            raise SystemExit(f"contender {name} is not one of {', '.join(known)}")
    return [entry for entry in ENTRIES if names is None or entry.name in names]


def groups(entries: list[Entry], shape: Shape, budget_bytes: int) -> list[list[Entry]]:
    """The entries, in order, in as few groups as fit into memory together."""
    found: list[list[Entry]] = []
    for entry in entries:
        together = [*(found[-1] if found else []), entry]
        if found and sum(e.expected_bytes(shape) for e in together) <= budget_bytes:
            found[-1] = together
        else:
            found.append([entry])
    return found
