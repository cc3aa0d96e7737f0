"""Documents from every kind of file, and contexts in an order that does not depend on the need."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from scaling.activations import contexts as contexts_module
from scaling.activations.contexts import load_tokenized, save_tokenized, tokenize, with_total
from scaling.activations.text import find_text
from scaling.errors import UserError
from tests.unit.activations.stores import recipe

DOCUMENTS = ["one two", "three\nfour\n", "five"]


class Letters:
    """A tokenizer whose ids are character codes."""

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        return [[ord(letter) for letter in text] for text in texts]


def documents(path: Path, column: str = "text") -> list[str]:
    return list(find_text(str(path), column=column, split="train").documents())


def test_txt_file_is_one_document_unless_separated(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text("one two\nthree\n")
    assert documents(path) == ["one two\nthree\n"]
    path.write_text("one two\n<|endoftext|>\nthree\n")
    assert documents(path) == ["one two\n", "three\n"]


def test_jsonl_and_parquet_give_their_column(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as parquet

    lines = [json.dumps({"body": text, "n": 1}) for text in DOCUMENTS]
    (tmp_path / "a.jsonl").write_text("\n".join(lines) + "\n\n")
    parquet.write_table(pa.table({"body": DOCUMENTS}), tmp_path / "b.parquet")
    assert documents(tmp_path / "a.jsonl", "body") == DOCUMENTS
    assert documents(tmp_path / "b.parquet", "body") == DOCUMENTS
    assert documents(tmp_path, "body") == DOCUMENTS * 2
    with pytest.raises(UserError, match=r"activations\.text_column='text'.*body"):
        documents(tmp_path / "b.parquet")


def test_broken_jsonl_names_the_line(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "fine"}\n{"text": \n')
    with pytest.raises(UserError, match="line 2 of"):
        documents(tmp_path / "a.jsonl")


def test_fingerprint_is_the_content(tmp_path: Path) -> None:
    def fingerprint(folder: Path) -> str:
        return find_text(str(folder), column="text", split="train").fingerprint()

    for name in ("here", "there"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.txt").write_text("same")
    assert fingerprint(tmp_path / "here") == fingerprint(tmp_path / "there")
    (tmp_path / "there/a.txt").write_text("else")
    assert fingerprint(tmp_path / "here") != fingerprint(tmp_path / "there")


def test_order_of_contexts_does_not_depend_on_how_many_are_wanted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(contexts_module, "SLAB_CHARACTERS", 300)
    monkeypatch.setattr(contexts_module, "BATCH_CHARACTERS", 100)
    path = tmp_path / "a.jsonl"
    rng = np.random.default_rng(0)
    texts = ["".join(chr(c) for c in rng.integers(97, 123, 23)) for _ in range(200)]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    source = find_text(str(path), column="text", split="train")
    few = tokenize(source, Letters(), recipe(), {"train": 10, "eval": 5}, lambda done: None)
    every = tokenize(source, Letters(), recipe(), {"train": 10**6, "eval": 5}, lambda done: None)
    assert not few.exhausted
    assert every.exhausted
    for split in ("train", "eval"):
        n = len(few.contexts[split])
        assert 0 < n < len(every.contexts[split])
        assert np.array_equal(few.contexts[split], every.contexts[split][:n])
    # Documents of 23 letters give 4 contexts of 5 and leave 3 letters.
    assert sum(map(len, every.contexts.values())) == 800
    other = tokenize(
        source, Letters(), replace(recipe(), seed=1), {"train": 10, "eval": 5}, lambda done: None
    )
    assert not np.array_equal(other.contexts["train"], few.contexts["train"])


def test_how_much_there_may_be_to_read_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(contexts_module, "SLAB_CHARACTERS", 300)
    monkeypatch.setattr(contexts_module, "BATCH_CHARACTERS", 100)
    for n in range(5):
        (tmp_path / f"{n}.txt").write_text("x" * 100)
    source = find_text(str(tmp_path), column="text", split="train")
    seen: list[tuple[int, int]] = []
    progress = with_total(source, lambda *one: seen.append(one))
    tokenize(source, Letters(), recipe(), {"train": 10**6, "eval": 5}, progress)
    # To the end of a slab, since no less is read; then to the end of the text.
    assert seen == [(100, 300), (200, 300), (300, 300), (400, 500), (500, 500)]
    monkeypatch.setattr(type(source), "most_characters", lambda _: None)
    progress = with_total(source, lambda *one: seen.append(one))
    progress(400)
    assert seen[-1] == (400, 600)


def test_tokenized_text_survives_the_disk(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("abcdefghijkl")
    source = find_text(str(tmp_path / "a.txt"), column="text", split="train")
    assert load_tokenized(tmp_path) is None
    made = tokenize(source, Letters(), recipe(), {"train": 9, "eval": 9}, lambda done: None)
    save_tokenized(tmp_path, made)
    kept = load_tokenized(tmp_path)
    assert kept is not None
    assert kept.exhausted
    for split in ("train", "eval"):
        assert np.array_equal(kept.contexts[split], made.contexts[split])


def test_a_file_that_is_no_parquet_is_named(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    path = tmp_path / "broken.parquet"
    path.write_bytes(b"not parquet")
    with pytest.raises(UserError, match="not a parquet file"):
        documents(path)
