"""What all ranks of a run have to hold alike: a number, the first problem that any of them met."""

from __future__ import annotations

import secrets

import torch
from torch import Tensor

from scaling.train.mesh import Mesh

_TEXT_BYTES = 2_000


def largest(mesh: Mesh, value: int, purpose: str) -> int:
    """The largest of the ranks' values (int64). Collective."""
    return int(_max(mesh, torch.tensor([value]), purpose))


def fresh_token(mesh: Mesh, purpose: str) -> str:
    """A name that nobody had before, the same on all ranks. Collective."""
    drawn = secrets.randbits(62) if mesh.leads else 0
    return f"{largest(mesh, drawn, purpose):016x}"


def first_problem(mesh: Mesh, problem: str | None, purpose: str) -> str | None:
    """What went wrong on the lowest rank where something did, told to all; None when nothing did.

    Collective; a long text is cut off.
    """
    world_size = mesh.world_size
    behind = largest(mesh, 0 if problem is None else world_size - mesh.rank, purpose)
    if not behind:
        return None
    text = torch.zeros(_TEXT_BYTES, dtype=torch.int64)
    if problem is not None and mesh.rank == world_size - behind:
        content = problem.encode()[:_TEXT_BYTES]
        text[: len(content)] = torch.tensor(list(content))
    told = bytes(_max(mesh, text, purpose).tolist()).rstrip(b"\0")
    return told.decode(errors="ignore")


def _max(mesh: Mesh, tensor: Tensor, purpose: str) -> Tensor:
    ours = tensor.to(mesh.device)
    return mesh.dp.max_(mesh.latent.max_(ours, purpose), purpose).cpu()
