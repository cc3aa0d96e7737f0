"""Tests here run only where OPENWANDB names the executable of a W&B-compatible server."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.online.openwandb import Gateway, OpenWandb, gateway, open_wandb


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenWandb]:
    executable = os.environ.get("OPENWANDB")
    if not executable:
        pytest.skip("OPENWANDB does not name a server's executable (docs/dashboards.md)")
    if not Path(executable).is_file():
        pytest.fail(f"OPENWANDB={executable} is no file")
    with open_wandb(executable, tmp_path_factory.mktemp("openwandb")) as running:
        yield running


@pytest.fixture(scope="module")
def door(server: OpenWandb) -> Iterator[Gateway]:
    with gateway(server) as running:
        yield running
