"""The subject model in two parts makes what it makes in one, and takes up what is put between."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from scaling.activations.split_subject import SplitSubject
from scaling.activations.subject import Subject
from scaling.errors import UserError

IDS = torch.randint(0, 64, (3, 8), generator=torch.Generator().manual_seed(0))


@pytest.fixture(params=["llama_folder", "gpt2_folder"])
def folder(request: pytest.FixtureRequest) -> Path:
    return request.getfixturevalue(request.param)


@pytest.mark.parametrize("layer", [1, 2, 3])
def test_both_parts_together_are_the_model(folder: Path, layer: int) -> None:
    subject = SplitSubject(folder, layer=layer, dtype="float32", device="cpu")
    residual = subject.residual(IDS)
    harvested = Subject(folder, layers=[layer], dtype="float32", device="cpu").residuals(IDS)
    assert torch.equal(residual, harvested[layer])
    whole = AutoModelForCausalLM.from_pretrained(folder)(IDS, use_cache=False).logits
    torch.testing.assert_close(subject.logits(IDS, residual), whole.detach(), rtol=0, atol=1e-6)
    last = subject.logits(IDS, residual, last=2)
    torch.testing.assert_close(last, whole[:, -2:].detach(), rtol=0, atol=1e-6)
    assert not torch.allclose(subject.logits(IDS, torch.zeros_like(residual)), whole, atol=1e-2)
    torch.testing.assert_close(subject.residual(IDS), residual)  # the blocks are themselves again


def test_a_change_at_one_token_changes_no_earlier_logits(folder: Path) -> None:
    subject = SplitSubject(folder, layer=2, dtype="float32", device="cpu")
    residual = subject.residual(IDS)
    changed = residual.clone()
    changed[:, 5, 0] += 3  # of one channel: a layer norm takes what all have
    moved = (subject.logits(IDS, changed) - subject.logits(IDS, residual)).abs().amax(dim=(0, 2))
    assert moved[:5].max() == 0
    assert moved[5:].min() > 1e-4


def test_gradients_reach_the_residual_and_no_weight(llama_folder: Path) -> None:
    subject = SplitSubject(llama_folder, layer=2, dtype="float32", device="cpu")
    residual = subject.residual(IDS).requires_grad_()
    subject.logits(IDS, residual)[:, -1].sum().backward()
    assert residual.grad is not None
    assert residual.grad.abs().sum() > 0


def test_a_layer_that_is_not_there_is_named(llama_folder: Path) -> None:
    with pytest.raises(UserError, match="layer 4: the subject model has 3 blocks"):
        SplitSubject(llama_folder, layer=4, dtype="float32", device="cpu")
