"""What evaluations keep for others is found again by all that it hangs on."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from scaling.evaluation import n2g_probe
from scaling.evaluation.kept import kept
from tests.unit.activations.conftest import ConfigMaker
from tests.unit.evaluation.small import material_of

SAME = {"model": "m", "layer": 1, "dtype": "float32", "drop_positions": 1, "max_norm": 3.0, "x": 0}


def _kept(data_dir: Path, value: float, facts: dict[str, Any]) -> float:
    request = SimpleNamespace(
        data_dir=data_dir, layer=facts["layer"], recipe=SimpleNamespace(model=facts["model"])
    )
    held_out = SimpleNamespace(drop_positions=facts["drop_positions"], max_norm=facts["max_norm"])
    material: Any = SimpleNamespace(request=request, held_out=held_out, dtype=facts["dtype"])
    return float(kept(material, "f", {"x": facts["x"]}, lambda: {"a": torch.tensor(value)})["a"])


@pytest.mark.parametrize(
    "other",
    [
        {"model": "n"},
        {"layer": 2},
        {"dtype": "bfloat16"},
        {"drop_positions": 0},
        {"max_norm": np.inf},
        {"x": 1},
    ],
)
def test_of_another_model_or_text_it_is_another(tmp_path: Path, other: dict[str, Any]) -> None:
    assert _kept(tmp_path, 1.0, SAME) == 1.0
    assert _kept(tmp_path, 2.0, SAME) == 1.0
    assert _kept(tmp_path, 3.0, {**SAME, **other}) == 3.0
    assert _kept(tmp_path, 4.0, SAME) == 1.0


def test_probed_tokens_are_of_their_contexts(
    harvest_config: ConfigMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids_CT = torch.randint(1, 12, (4, 8), generator=torch.Generator().manual_seed(1))
    other_CT = ids_CT.clone()
    other_CT[2, 3] = (other_CT[2, 3] + 1) % 12
    tokens = np.array([5, 19])

    def files(ids_CT: Tensor) -> set[str]:
        n2g_probe.probed_once(material_of(harvest_config(), tmp_path, ids_CT), tokens, 2)
        return {path.name for path in (tmp_path / "n2g").iterdir()}

    assert len(files(ids_CT)) == len(files(ids_CT)) == 1
    assert len(files(other_CT)) == 2
    assert len(files(ids_CT.view(8, 4))) == 3, "the same tokens, cut otherwise"
    monkeypatch.setattr(n2g_probe, "VERSION", 0)
    assert len(files(ids_CT)) == 4
