"""Virtual environments for the packages that the benchmark compares with.

    python -m benchmarks.peers.install [--envs FOLDER] [--torch-index URL] [PEER ...]

Each package gets an environment of its own: their requirements exclude each other. An environment
that already holds the wanted versions is left alone. Uses uv where it is installed, else pip.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

TORCH = "torch==2.13.0"
"""One version for all, so that the packages are compared and not the releases of torch."""

DEFAULT_ENVS = Path(__file__).parents[2] / ".bench"
_STAMP = "installed.json"


@dataclass(frozen=True)
class Peer:
    """What to install for one package."""

    package: str
    step_needs: tuple[str, ...] | None = None
    """Install these instead of everything that the package requires; None = everything."""


PEERS = {
    "sae_lens": Peer("sae-lens==6.54.12"),
    # Its nnsight (below 0.4) does not import beside today's transformers and torchvision. The
    # training step uses neither; see dictionary_learning_step.py.
    "dictionary_learning": Peer("dictionary-learning==0.1.0", ("einops==0.8.2", "tqdm==4.70.1")),
    "sparsify": Peer("eai-sparsify==1.3.3"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description="Install the packages to compare with.")
    parser.add_argument("peers", nargs="*", metavar="PEER", help=f"of {', '.join(PEERS)}")
    parser.add_argument("--envs", type=Path, default=DEFAULT_ENVS, help="folder of environments")
    parser.add_argument("--torch-index", help="where to get torch, e.g. a CPU-only build")
    args = parser.parse_args()
    install(args.peers or list(PEERS), args.envs, args.torch_index)


def install(peers: list[str], envs: Path, torch_index: str | None = None) -> None:
    """Make sure that each peer's environment exists and holds the wanted versions."""
    for peer in peers:
        if peer not in PEERS:
            raise SystemExit(f"{peer} is not one of {', '.join(PEERS)}")
        if _is_installed(peer, envs / peer):
            print(f"{peer}: {PEERS[peer].package} is in {envs / peer}", file=sys.stderr)
        else:
            _install_one(peer, envs / peer, torch_index)


def python_of(peer: str, envs: Path) -> Path:
    """The interpreter of a peer's environment."""
    return _python(envs / peer)


def _is_installed(peer: str, env: Path) -> bool:
    stamp = env / _STAMP
    return stamp.is_file() and json.loads(stamp.read_text()) == _wanted(peer)


def _wanted(peer: str) -> list[str]:
    return [TORCH, PEERS[peer].package, *(PEERS[peer].step_needs or ())]


def _install_one(peer: str, env: Path, torch_index: str | None) -> None:
    print(f"{peer}: installing {', '.join(_wanted(peer))} into {env}", file=sys.stderr)
    # What a version change or an interrupted installation left is not worth repairing.
    shutil.rmtree(env, ignore_errors=True)
    env.parent.mkdir(parents=True, exist_ok=True)
    pip = _create(env)
    if torch_index:
        _run([*pip, TORCH, "--index-url", torch_index])
    package, step_needs = PEERS[peer].package, PEERS[peer].step_needs
    if step_needs is None:
        _run([*pip, TORCH, package])
    else:
        _run([*pip, TORCH, "numpy", *step_needs])
        _run([*pip, "--no-deps", package])
    (env / _STAMP).write_text(json.dumps(_wanted(peer)))


def _create(env: Path) -> list[str]:
    """Make an empty environment; returns the command that installs into it."""
    uv = shutil.which("uv")
    if uv:
        _run([uv, "venv", "--quiet", "--python", sys.executable, str(env)])
        return [uv, "pip", "install", "--quiet", "--python", str(_python(env))]
    _run([sys.executable, "-m", "venv", str(env)])
    return [str(_python(env)), "-m", "pip", "install", "-qq", "--disable-pip-version-check"]


def _python(env: Path) -> Path:
    return env / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def _run(command: list[str]) -> None:
    print("  " + " ".join(command), file=sys.stderr)
    subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
