"""Files written block by block are what the library reads."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from scaling.storage.hashing import file_sha256
from scaling.train.tensor_file import Layout, write_blocks, write_tensor_file

TENSORS = {
    "rows": torch.randn(7, 3),
    "wide": torch.randn(3, 2, dtype=torch.float64),
    "half": torch.randn(5).bfloat16(),
    "small": torch.arange(3, dtype=torch.uint8),
    "flag": torch.tensor([True, False]),
    "scalar": torch.tensor(3),
    "none": torch.zeros(0, 4),
    "turned": torch.randn(4, 6).T,  # not contiguous
}


def test_the_library_reads_it_and_the_checksum_is_the_files(tmp_path: Path) -> None:
    written = write_tensor_file(tmp_path / "a", TENSORS)
    found = load_file(tmp_path / "a")
    assert found.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)
    assert written.sha256 == file_sha256(tmp_path / "a")
    assert written.n_bytes == (tmp_path / "a").stat().st_size


def test_blocks_make_the_same_file(tmp_path: Path) -> None:
    layout = {name: Layout(tensor.dtype, tuple(tensor.shape)) for name, tensor in TENSORS.items()}
    whole = write_tensor_file(tmp_path / "a", TENSORS)
    by_rows = write_blocks(
        tmp_path / "b",
        layout,
        lambda name: TENSORS[name].split(2) if name == "rows" else [TENSORS[name]],
    )
    assert by_rows == whole
    with pytest.raises(ValueError, match="blocks of rows do not make up"):
        write_blocks(tmp_path / "c", {"rows": layout["rows"]}, lambda name: [TENSORS[name][:-1]])
