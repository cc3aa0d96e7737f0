"""What a site says, read back from its data files; and a browser to look at it."""

from __future__ import annotations

import base64
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

KINDS = {"Float32Array": "<f4", "Uint8Array": "<u1", "Uint16Array": "<u2", "Uint32Array": "<u4"}


def called_with(path: Path) -> list[Any]:
    """The arguments of the one call in a data file."""
    call = re.fullmatch(r"viewer\.\w+\((.*)\);\n", path.read_text("ascii"), re.DOTALL)
    assert call is not None
    return json.loads(f"[{call[1]}]")


def unpacked(packed: dict[str, str]) -> np.ndarray[Any, Any]:
    return np.frombuffer(base64.b64decode(packed["data"]), KINDS[packed["type"]])


def about(site: Path) -> dict[str, Any]:
    return called_with(site / "data" / "site.js")[0]


def columns(site: Path) -> dict[str, np.ndarray[Any, Any]]:
    return {one["key"]: unpacked(one["values"]) for one in about(site)["columns"]}


def latents(site: Path) -> list[dict[str, Any]]:
    """All of them, in their order."""
    chunks = [called_with(path) for path in sorted((site / "data").glob("latents_*.js"))]
    assert [number for number, _ in chunks] == list(range(len(chunks)))
    return [latent for _, chunk in chunks for latent in chunk]


def dom(url: str, profile: Path, *options: str) -> str:
    """The page as Chromium has it after its scripts. Skips where there is no Chromium."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        pytest.skip("no chromium on this machine: pages cannot be looked at")
    command = [
        chromium,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        f"--user-data-dir={profile}",
    ]
    command += ["--dump-dom", "--virtual-time-budget=8000", *options, url]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stdout
