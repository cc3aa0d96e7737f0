"""The held-out text in two halves of whole documents, and which document each context is of."""

from __future__ import annotations

import itertools
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from scaling.activations import held_out as held_out_module
from scaling.activations.contexts import Contexts
from scaling.activations.text import is_held_out
from scaling.errors import UserError
from scaling.evaluate_material import material_of
from scaling.evaluation.halves import halves, is_tested
from scaling.evaluation.options import parsed
from scaling.run_weights import plan_of
from scaling.runs.store import RunFolder
from tests.unit.activations.conftest import ConfigMaker
from tests.unit.evaluation import small


def test_no_document_is_on_both_sides_and_they_are_about_even() -> None:
    rng = np.random.default_rng(0)
    documents_C = rng.permutation(np.repeat(np.arange(40), rng.integers(1, 30, 40)))
    tested_C = is_tested(documents_C)
    assert not set(documents_C[tested_C]) & set(documents_C[~tested_C])
    assert abs(tested_C.mean() - 0.5) < 0.01
    again = rng.permutation(len(documents_C))
    assert np.array_equal(is_tested(documents_C[again]), tested_C[again]), "whatever the order"


@pytest.mark.parametrize(
    ("documents", "tested"),
    [
        ([7, 7, 7, 5, 5, 9], [False, False, False, True, True, True]),
        ([1, 0], [True, False]),
        ([4, 4, 4, 4], [False, True, False, True]),  # of one document: every other context
        ([4], [False]),
    ],
)
def test_the_largest_goes_first_to_the_smaller_half(
    documents: list[int], tested: list[bool]
) -> None:
    assert is_tested(np.array(documents, np.uint64)).tolist() == tested


def test_halves_hold_the_kept_tokens_of_their_contexts(
    harvest_config: ConfigMaker, tmp_path: Path
) -> None:
    ids_CT = torch.randint(1, 12, (5, 8), generator=torch.Generator().manual_seed(1))
    documents = [3, 3, 3, 8, 8]
    material = small.material_of(harvest_config(), tmp_path, ids_CT, documents=documents)
    build, test = halves(material)
    assert set(build.tokens_R // 8) == {0, 1, 2}
    assert set(test.tokens_R // 8) == {3, 4}
    residual_CTD = torch.cat([batch.residual_CTD for batch in material.batches()])
    for half in (build, test):
        assert set(half.tokens_R % 8) == set(range(1, 8))  # the first is none
        assert torch.equal(half.x_RD, residual_CTD.flatten(0, 1)[half.tokens_R].float())
    alone = small.material_of(harvest_config(), tmp_path, ids_CT[:1])
    with pytest.raises(UserError, match=r"explain\.contexts: 1 held-out contexts are too few"):
        halves(alone)


def test_units_are_the_kept_tokens_of_these_contexts(
    harvest_config: ConfigMaker, tmp_path: Path
) -> None:
    ids_CT = torch.randint(1, 12, (5, 8), generator=torch.Generator().manual_seed(1))
    other_CT = ids_CT.clone()
    other_CT[4, 7] = 0

    def units(ids_CT: torch.Tensor, max_norm: float = np.inf, batch: int = 3) -> str:
        material = small.material_of(harvest_config(), tmp_path, ids_CT, max_norm=max_norm)
        material._batch_contexts = batch
        return material.units

    norms = [
        batch.residual_CTD.float().norm(dim=2)[:, 1:]
        for batch in small.material_of(harvest_config(), tmp_path, ids_CT).batches()
    ]
    one_less = float(torch.cat(norms).max()) * 0.9999
    assert units(ids_CT) == units(ids_CT, batch=2)
    assert len({units(ids_CT), units(other_CT), units(ids_CT[:4]), units(ids_CT, one_less)}) == 4


def test_contexts_know_their_documents(finished: RunFolder) -> None:
    material = material_of(plan_of(finished), parsed(["contexts=100000"]))
    request, held_out = material.request, material.held_out
    from scaling.activations.subject import Tokenizer

    encoder, size = Tokenizer(material.model_folder), request.recipe.context
    found: dict[bytes, set[int]] = {}
    texts = [t for t in request.text.documents() if is_held_out(t, request.recipe.eval_fraction)]
    for number, text in enumerate(texts):
        ids = np.asarray(encoder.encode([text])[0], np.int32)
        for start in range(0, len(ids) - size + 1, size):
            found.setdefault(ids[start : start + size].tobytes(), set()).add(number)
    numbers = [found[context.tobytes()] for context in held_out.contexts_CT]
    assert len(held_out.documents_C) == len(numbers) > 10
    assert len(np.unique(held_out.documents_C)) > 2
    pairs = itertools.combinations(range(len(numbers)), 2)
    for one, other in pairs:
        if len(numbers[one]) == len(numbers[other]) == 1:
            same = held_out.documents_C[one] == held_out.documents_C[other]
            assert same == (texts[min(numbers[one])] == texts[min(numbers[other])])


@pytest.fixture
def kept(finished: RunFolder) -> Path:
    """The folder of the first 9 held-out contexts, made."""
    assert len(_nine(finished)[1]) == 9
    data_dir = material_of(plan_of(finished), parsed([])).request.data_dir
    [path] = (data_dir / "activations").glob("*-held-out9")
    return path


def _nine(finished: RunFolder) -> tuple[list[list[int]], list[int]]:
    """Contexts and documents, as another command reads them."""
    held_out = material_of(plan_of(finished), parsed(["contexts=9"])).held_out
    return held_out.contexts_CT.tolist(), held_out.documents_C.tolist()


@pytest.mark.parametrize("content", [None, b"", "half", "of fewer"])
def test_contexts_kept_without_their_documents_get_them(
    finished: RunFolder, kept: Path, content: bytes | str | None
) -> None:
    first, documents = _nine(finished), kept / "documents.npy"
    inodes = {path: path.stat().st_ino for path in kept.glob("contexts.*")}
    whole = documents.read_bytes()
    documents.unlink()
    if content == "of fewer":
        np.save(documents, np.array(first[1][:5], np.uint64))
    elif content is not None:
        documents.write_bytes(whole[:50] if content == "half" else b"")
    assert _nine(finished) == first
    assert documents.read_bytes() == whole
    assert {path: path.stat().st_ino for path in kept.glob("contexts.*")} == inodes, (
        "another process may be reading them"
    )


@pytest.mark.parametrize("damage", ["cut short", "other ones", "gone"])
def test_contexts_that_are_damaged_are_made_again(
    finished: RunFolder, kept: Path, damage: str
) -> None:
    first, contexts = _nine(finished), kept / "contexts.npy"
    whole = contexts.read_bytes()
    if damage == "other ones":  # without the documents, what is there is held against the text
        np.save(contexts, np.load(contexts) + 1)
        (kept / "documents.npy").unlink()
    elif damage == "cut short":
        contexts.write_bytes(whole[:-40])
    else:
        shutil.rmtree(kept)
    assert _nine(finished) == first
    assert contexts.read_bytes() == whole
    assert _nine(finished) == first


@pytest.mark.parametrize("older", [True, False])
def test_where_nothing_can_be_kept_the_text_is_read_anew(
    finished: RunFolder, kept: Path, monkeypatch: pytest.MonkeyPatch, older: bool
) -> None:
    first = _nine(finished)
    (kept / "documents.npy").unlink()
    if not older:
        shutil.rmtree(kept)

    def refused(path: Path, *rest: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    for name in ("write_bytes", "write_contexts"):
        monkeypatch.setattr(held_out_module, name, refused)
    assert _nine(finished) == first
    assert not (kept / "documents.npy").exists()


def test_two_that_make_them_at_once_both_have_them(
    finished: RunFolder, kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = _nine(finished)
    shutil.rmtree(kept)
    write = held_out_module.write_contexts

    def after_another(folder: Path, contexts_CT: Contexts) -> None:
        """Another one is as far, and takes away what this one has just written."""
        write(folder, contexts_CT)
        shutil.rmtree(folder)

    monkeypatch.setattr(held_out_module, "write_contexts", after_another)
    assert _nine(finished) == first
    monkeypatch.undo()
    assert _nine(finished) == first
    assert (kept / "documents.npy").exists()


def test_documents_of_a_small_request_begin_those_of_a_larger_one(finished: RunFolder) -> None:
    everything = material_of(plan_of(finished), parsed(["contexts=100000"])).held_out
    assert len(np.unique(everything.documents_C)) > 2
    assert _nine(finished) == (
        everything.contexts_CT[:9].tolist(),
        everything.documents_C[:9].tolist(),
    )
