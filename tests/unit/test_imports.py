"""The import contract: who may import what, read from the source; what an import really loads."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = sorted(
    [*ROOT.glob("scaling/**/*.py"), *ROOT.glob("analysis/**/*.py"), ROOT / "launch.py"]
)

OWNERS = {
    "deepspeed": ["scaling/distributed/"],
    "wandb": ["scaling/runs/wandb_mirror.py", "analysis/records/wandb_reader.py"],
    "wandb_workspaces": ["analysis/dashboards/"],
    "triton": ["scaling/kernels/"],
    "hydra": ["scaling/command_line.py", "scaling/config.py"],
    "omegaconf": [
        "scaling/autoencoder_config.py",
        "scaling/command_line.py",
        "scaling/config.py",
        "scaling/evaluation/options.py",
        "scaling/launcher_config.py",
        "scaling/sweep_config.py",
    ],
    "submitit": ["scaling/launchers/"],
    "torch.distributed": ["scaling/distributed/"],
    "scipy": ["analysis/"],
    "pandas": ["analysis/"],
    "matplotlib": ["analysis/"],
    "transformers": ["scaling/activations/"],
    "gguf": ["scaling/activations/"],
    "huggingface_hub": ["scaling/activations/", "scaling/interchange/hub.py"],
}
"""Heavy packages and the only places that may import them."""

LAYERS = {
    "scaling/storage/": ["scaling.storage", "scaling.errors"],
    "scaling/kernels/": ["scaling.kernels"],
    "scaling/autoencoder/": ["scaling.autoencoder", "scaling.kernels"],
    "scaling/budget/": ["scaling.budget", "scaling.errors"],
    "scaling/schedule.py": [],
    "scaling/runs/": ["scaling.runs", "scaling.storage", "scaling.errors"],
    "scaling/activations/": [
        "scaling.activations",
        "scaling.choices",
        "scaling.config",
        "scaling.malloc",
        "scaling.storage",
        "scaling.errors",
    ],
    "scaling/train/": [
        "scaling.train",
        "scaling.activations",
        "scaling.autoencoder",
        "scaling.kernels",
        "scaling.runs",
        "scaling.storage",
        "scaling.budget",
        "scaling.schedule",
        "scaling.plan",
        "scaling.hardware",
        "scaling.errors",
    ],
    "scaling/interchange/": [
        "scaling.interchange",
        "scaling.activations.normalize",
        "scaling.autoencoder",
        "scaling.kernels",
        "scaling.storage",
        "scaling.train.tensor_file",
        "scaling.errors",
    ],
    "scaling/evaluation/": [
        "scaling.evaluation",
        "scaling.activations",
        "scaling.autoencoder",
        "scaling.hardware",
        "scaling.interchange",
        "scaling.kernels",
        "scaling.runs",
        "scaling.storage",
        "scaling.errors",
    ],
    "scaling/viewer/": [
        "scaling.viewer",
        "scaling.activations",
        "scaling.autoencoder",
        "scaling.evaluation",
        "scaling.interchange",
        "scaling.runs.evaluation_columns",
        "scaling.storage",
        "scaling.errors",
    ],
    "analysis/": [
        "analysis",
        "scaling.runs.draws",
        "scaling.runs.evaluation_columns",
        "scaling.runs.fields",
        "scaling.runs.record",
        "scaling.runs.store",
        "scaling.budget",
        "scaling.schedule",
    ],
}
"""What of this project each part may import: arrows point down only."""

BARE = ["scaling/kernels/", "scaling/autoencoder/"]
"""Run on a machine with torch, triton and numpy alone."""


def imports_of(source: str) -> Iterator[str]:
    """Full names of all modules that `source` imports, wherever the statement stands."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def is_within(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


def violations(path: str, source: str) -> list[str]:
    found = []
    for name in imports_of(source):
        for package, places in OWNERS.items():
            if is_within(name, package) and not any(path.startswith(place) for place in places):
                found.append(f"{path} imports {name}, which belongs to {places}")
        for part, allowed in LAYERS.items():
            ours = is_within(name, "scaling") or is_within(name, "analysis")
            below = name in ("scaling", "analysis") or any(is_within(name, m) for m in allowed)
            if path.startswith(part) and ours and not below:
                found.append(f"{path} imports {name}: not below it")
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_down_and_have_one_owner(path: Path) -> None:
    assert violations(str(path.relative_to(ROOT)), path.read_text()) == []


def test_the_contract_can_fail() -> None:
    assert violations("scaling/runs/store.py", "import wandb")
    assert violations("scaling/kernels/x.py", "def f():\n    from scaling.config import RunConfig")
    assert violations("analysis/fit.py", "import scaling.train.run")
    assert not violations("analysis/fit.py", "import scipy.optimize")


@pytest.mark.parametrize("module", ["scaling.kernels", "scaling.autoencoder"])
def test_the_model_loads_only_torch_triton_and_numpy(module: str) -> None:
    """Other third-party packages are made unimportable; the parts must import all the same."""
    script = f"""
import importlib, pathlib, pkgutil, sys
blocked = ["omegaconf", "hydra", "safetensors", "transformers", "wandb", "deepspeed", "scipy",
           "pandas", "matplotlib", "rich", "psutil", "scaling.config"]
sys.modules.update(dict.fromkeys(blocked))
package = importlib.import_module("{module}")
for part in pkgutil.iter_modules(package.__path__, "{module}."):
    importlib.import_module(part.name)
"""
    subprocess.run([sys.executable, "-c", script], check=True, cwd=ROOT)


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("scaling", "torch"),
        ("scaling.interchange", "torch"),
        ("scaling.interchange.load", "transformers"),
        ("analysis.fit", "torch"),
        ("scaling.status", "torch"),
        ("scaling.budget.__main__", "torch"),
        ("scaling.budget.__main__", "hydra"),
        ("scaling.cancel", "torch"),
    ],
)
def test_light_entry_points_stay_light(module: str, absent: str) -> None:
    script = f"import sys, {module}; sys.exit({absent!r} in sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True, cwd=ROOT)


def test_loading_is_imported_when_it_is_asked_for() -> None:
    script = """
import sys, scaling
assert "torch" not in sys.modules
from scaling import load_autoencoder
assert load_autoencoder is scaling.load_autoencoder and "torch" in sys.modules
assert not hasattr(scaling, "load_autoencoders")
"""
    subprocess.run([sys.executable, "-c", script], check=True, cwd=ROOT)
