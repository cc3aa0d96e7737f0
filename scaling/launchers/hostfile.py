"""Hostfiles in DeepSpeed's format: one "HOST slots=N" per line, # begins a comment.

A run takes the first slots, as many as it has processes; rank r is the r-th of them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from scaling.errors import UserError

_LINE = re.compile(r"(\S+)\s+slots=(\d+)\s*(#.*)?")


@dataclass(frozen=True)
class Host:
    name: str
    slots: int

    def __str__(self) -> str:
        return f"{self.name} slots={self.slots}"


def read_hostfile(path: Path) -> list[Host]:
    """The hosts of a file.

    Raises:
        UserError: no such file, no host in it, or a line that is none.
    """
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f'launcher.hostfile={path} cannot be read ({error}). Give a file of lines "HOST '
            'slots=N".'
        ) from error
    hosts: list[Host] = []
    for number, line in enumerate(map(str.strip, lines), start=1):
        if line and not line.startswith("#"):
            hosts.append(_host(path, number, line, {host.name for host in hosts}))
    if not hosts:
        raise UserError(
            f'launcher.hostfile={path} names no host. Give it one line "HOST slots=N" for each.'
        )
    return hosts


def _host(path: Path, number: int, line: str, before: set[str]) -> Host:
    where = f"launcher.hostfile={path}, line {number}"
    match = _LINE.fullmatch(line)
    if match is None:
        raise UserError(f'{where}, {line!r} is not of the form "HOST slots=N". Correct it.')
    if int(match[2]) < 1:
        raise UserError(
            f"{where}, {line!r} offers no slot. Give slots=1 or more, or drop the line."
        )
    if match[1] in before:
        raise UserError(
            f"{where} names {match[1]} again. Give each host one line with all its slots."
        )
    return Host(match[1], int(match[2]))


def hosts_for(hosts: Sequence[Host], world_size: int, where: str) -> list[Host]:
    """The first `world_size` slots.

    Raises:
        UserError: there are fewer.
    """
    chosen: list[Host] = []
    left = world_size
    for host in hosts:
        if left:
            chosen.append(Host(host.name, min(left, host.slots)))
            left -= chosen[-1].slots
    if left:
        raise UserError(
            f"launcher.hostfile={where} has {world_size - left} slots, and a run of mesh.dp times "
            f"mesh.latent needs {world_size}. Add hosts or slots, or lower the mesh."
        )
    return chosen
