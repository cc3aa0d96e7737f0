"""Downstream losses against the whole model with a hook, token by token; their known limits."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from scaling.activations.subject import find_blocks
from scaling.errors import UserError
from scaling.evaluation import downstream
from scaling.evaluation.compute_table import ComputeTable, OutsideTable
from scaling.evaluation.material import Material
from scaling.evaluation.metric import Subject
from tests.unit.evaluation.drawn import check_drawn

LAYER, N_CONTEXTS = 2, 5


@cache
def ids_of(folder: Path) -> Tensor:
    """Text that the model itself goes on with, so that it has something to lose; [C, 8]."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    ids_CT = torch.arange(3, 3 + N_CONTEXTS)[:, None]
    with torch.no_grad():
        for _ in range(7):
            ids_CT = torch.cat([ids_CT, model(ids_CT).logits[:, -1].argmax(1, keepdim=True)], dim=1)
    return ids_CT


class TestMaterial(Material):
    """Contexts given, a norm above which tokens are outliers, no store."""

    __test__ = False

    def __init__(self, folder: Path, max_norm: float = math.inf, dtype: str = "float32") -> None:
        self.device, self._dtype = "cpu", dtype
        self._batch_contexts, self._made = 2, {}
        self.model_folder, self.ids_CT = folder, ids_of(folder)
        self.request: Any = type("Request", (), {"layer": LAYER})
        facts = {"max_norm": max_norm, "drop_positions": 1, "documents_C": np.arange(N_CONTEXTS)}
        self.held_out: Any = type("Held", (), facts)


class Stands:
    """In the place of an autoencoder."""

    def __init__(self, reconstruct: Callable[[Tensor], Tensor]) -> None:
        self.reconstruct = reconstruct


def measured(material: Material, reconstruct: Callable[[Tensor], Tensor], **options: Any) -> Any:
    run: Any = Subject("run", Path(), Stands(reconstruct))  # type: ignore[arg-type]
    own = downstream.Options(**options)
    return downstream.Downstream().measure(run, material, own, lambda done, total: None)


@torch.no_grad()
def plain_ces(folder: Path, replace: Callable[[Tensor], Tensor], max_norm: float) -> list[Any]:
    """Per kept token (KL, (CE before, CE after) or None at the end of a context, its vector): whole
    forward passes, one token's distribution at a time."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    block = find_blocks(model)[LAYER - 1]
    rows = []
    for ids_T in ids_of(folder):
        before = model(ids_T[None]).logits[0]
        seen: list[Tensor] = []

        def put(module: Any, args: Any, output: Any, seen: Any = seen) -> Any:
            x = (output[0] if isinstance(output, tuple) else output).clone()
            seen.append(x[0].clone())
            for t in range(1, 8):
                if x[0, t].norm() <= max_norm:
                    x[0, t] = replace(x[0, t][None])[0]
            return (x, *output[1:]) if isinstance(output, tuple) else x

        handle = block.register_forward_hook(put)
        after = model(ids_T[None]).logits[0]
        handle.remove()
        [original] = seen
        for t in range(1, 8):
            if original[t].norm() > max_norm:
                continue
            p, q = before[t].double().softmax(0), after[t].double().softmax(0)
            kl = sum(a * math.log(a / b) for a, b in zip(p.tolist(), q.tolist(), strict=True))
            target = int(ids_T[t + 1]) if t < 7 else None
            ces = None if target is None else (-math.log(p[target]), -math.log(q[target]))
            rows.append((kl, ces, original[t]))
    return rows


def halves(x_RD: Tensor) -> Tensor:
    return x_RD / 2 + 0.1


@pytest.mark.parametrize("name", ["llama_folder", "gpt2_folder"])
def test_as_the_whole_model_with_a_hook_has_it(name: str, request: pytest.FixtureRequest) -> None:
    folder = request.getfixturevalue(name)
    norms = next(TestMaterial(folder).batches()).residual_CTD[:, 1:].norm(dim=2)
    max_norm = float(norms.flatten().kthvalue(10).values) + 1e-4  # some tokens are outliers
    found = measured(TestMaterial(folder, max_norm), halves)
    rows = plain_ces(folder, halves, max_norm)
    with_next = [ces for _, ces, _ in rows if ces is not None]
    assert found.notes["n_tokens"] == len(rows) < N_CONTEXTS * 7
    assert found.notes["n_left"] == N_CONTEXTS * 8 - len(rows)
    assert found.notes["n_predicted"] == len(with_next) < len(rows)
    kl = sum(kl for kl, _, _ in rows) / len(rows)
    delta = sum(after - before for before, after in with_next) / len(with_next)
    assert found.numbers["downstream_kl"] == pytest.approx(kl, rel=1e-3)
    assert found.numbers["downstream_delta_ce"] == pytest.approx(delta, rel=1e-3, abs=1e-6)
    mean_D = torch.stack([x_D for *_, x_D in rows]).double().mean(dim=0).float()
    for baseline, replace in (("zero", torch.zeros_like), ("mean", lambda x: mean_D[None])):
        plain = plain_ces(folder, replace, max_norm)
        lost = sum(ces[1] - ces[0] for _, ces, _ in plain if ces) / len(with_next)
        assert abs(lost) > 0.01
        ce = sum(ces[0] for ces in with_next) / len(with_next)
        assert found.notes[f"ce_{baseline}"] == pytest.approx(ce + lost, rel=1e-4)
        expected = (lost - delta) / lost if lost > 0 else None
        assert found.numbers[f"loss_recovered_{baseline}"] == pytest.approx(expected, abs=1e-3)


def test_known_limits(llama_folder: Path) -> None:
    material = TestMaterial(llama_folder)
    perfect = measured(material, lambda x_RD: x_RD).numbers
    assert (perfect["downstream_kl"], perfect["downstream_delta_ce"]) == (0.0, 0.0)
    assert (perfect["loss_recovered_zero"], perfect["loss_recovered_mean"]) == (1.0, 1.0)
    zero = measured(material, torch.zeros_like).numbers
    errors = measured(material, torch.zeros_like).standard_errors
    assert errors["downstream_kl"].value > 0 < errors["downstream_delta_ce"].value
    mean_D = downstream.mean_of_kept(material)
    mean = measured(material, lambda x_RD: mean_D.expand_as(x_RD)).numbers
    assert zero["loss_recovered_zero"] == pytest.approx(0, abs=1e-6)
    assert mean["loss_recovered_mean"] == pytest.approx(0, abs=1e-6)
    assert abs(zero["loss_recovered_mean"]) > 1e-3


def test_a_baseline_that_loses_nothing_leaves_nothing_to_recover(llama_folder: Path) -> None:
    material = TestMaterial(llama_folder)
    losses = downstream.substituted(material, halves)
    material._made["downstream baselines"] = (losses.ce_before_C, losses.ce_before_C + 1)
    found = measured(material, halves)
    assert found.numbers["loss_recovered_zero"] is None
    assert found.numbers["loss_recovered_mean"] is not None
    assert list(found.notes["undefined"]) == ["loss_recovered_zero"]


def test_first_positions_and_outliers_keep_their_residual(llama_folder: Path) -> None:
    material = TestMaterial(llama_folder)
    batch = next(material.batches())
    changed = downstream.replaced(batch, torch.zeros_like)
    assert torch.equal(changed[:, 0], batch.residual_CTD[:, 0])
    assert changed[:, 1:].abs().max() == 0
    none_kept = TestMaterial(llama_folder, max_norm=0.0)
    with pytest.raises(UserError, match="raise contexts"):
        measured(none_kept, halves)
    with pytest.raises(UserError, match=r"none of the 40 tokens .* raise contexts"):
        list(none_kept.batches())  # before any metric divides by their number


def test_a_dtype_that_overflows_is_named(
    llama_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    material = TestMaterial(llama_folder, dtype="float16")
    monkeypatch.setattr(
        type(material.subject), "residual", lambda self, ids: torch.full((*ids.shape, 16), math.inf)
    )
    with pytest.raises(UserError, match=r"dtype=float16.*Use dtype=bfloat16"):
        measured(material, halves)


def test_the_standard_errors_are_those_of_their_numbers(llama_folder: Path) -> None:
    """One context's sums at a time; nothing here knows which number an error goes with."""
    found = measured(TestMaterial(llama_folder), halves)
    check_drawn(found)
    alone = []
    for number in range(N_CONTEXTS):
        one = TestMaterial(llama_folder)
        one.ids_CT = one.ids_CT[number : number + 1]
        one.documents_C = np.array([number])
        alone.append(measured(one, halves))
    for column in ("downstream_kl", "downstream_delta_ce"):  # contexts here are of equal length
        values = [one.numbers[column] for one in alone]
        expected = stdev(values) / math.sqrt(N_CONTEXTS)
        assert found.standard_errors[column] == (pytest.approx(expected, rel=1e-3), "documents")
        assert column not in alone[0].standard_errors
    share = found.numbers["loss_recovered_zero"]
    lost = [one.notes["ce_zero"] - one.notes["ce"] for one in alone]
    gained = [one.numbers["downstream_delta_ce"] for one in alone]
    apart = [(1 - share) * b - a for a, b in zip(gained, lost, strict=True)]
    expected = stdev(apart) / math.sqrt(N_CONTEXTS) / mean(lost)
    assert found.standard_errors["loss_recovered_zero"].value == pytest.approx(expected, rel=1e-3)


def table(path: Path, *rows: str) -> Path:
    path.write_text("\n".join(["compute,ce", *rows]))
    return path


def test_the_fraction_of_compute(tmp_path: Path, llama_folder: Path) -> None:
    path = table(tmp_path / "t.csv", "100,1", "1,10", "10,4")
    known = ComputeTable.read(path)
    assert [known.compute(ce) for ce in (10, 4, 1)] == pytest.approx([1, 10, 100])
    assert known.compute(2) == pytest.approx(10 * 10**0.5)  # half way in ln ce is half way in ln c
    with pytest.raises(OutsideTable, match=r"spans losses of 1 to 10, and not 0\.5"):
        known.compute(0.5)
    material = TestMaterial(llama_folder)
    found = measured(material, halves, compute_table=str(path))
    ce = found.notes["ce"]
    ratio = known.compute(ce + found.numbers["downstream_delta_ce"]) / known.compute(ce)
    assert found.numbers["downstream_compute_fraction"] == pytest.approx(ratio)
    assert ratio != 1
    beyond = measured(material, halves, compute_table=str(table(path, "1,100", "2,90")))
    assert beyond.numbers["downstream_compute_fraction"] is None
    assert "add rows" in beyond.notes["undefined"]["downstream_compute_fraction"]
    assert beyond.numbers["downstream_kl"] == found.numbers["downstream_kl"]


@pytest.mark.parametrize(
    ("rows", "why"),
    [
        (["1,2"], "it has 1 rows"),
        (["1,2", "2,2"], "from compute 1 to 2 ce does not fall"),
        (["1,2", "2,-1"], "not above 0"),
        (["1,2", "2"], "cannot be read"),
        (["1,2", "2,x"], "cannot be read"),
    ],
)
def test_tables_that_are_none(tmp_path: Path, rows: list[str], why: str) -> None:
    with pytest.raises(UserError, match=why):
        ComputeTable.read(table(tmp_path / "t.csv", *rows))
    with pytest.raises(UserError, match="cannot be read"):
        ComputeTable.read(tmp_path / "absent.csv")


def test_the_table_is_identity_by_its_numbers(tmp_path: Path) -> None:
    first, same, other = (
        table(tmp_path / f"{name}.csv", f"1,{ce}", "2,1")
        for name, ce in (("a", "3"), ("b", "3.0"), ("c", "4"))
    )
    settings = [
        downstream.Downstream().settings(downstream.Options(compute_table=str(path)))
        for path in (first, same, other)
    ]
    assert settings[0] == settings[1] != settings[2]
