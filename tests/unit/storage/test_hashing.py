import hashlib
from pathlib import Path

import pytest

from scaling.storage.hashing import canonical_json, file_sha256, sha256_hex


def test_one_spelling_whatever_the_order():
    assert canonical_json({"b": 1, "a": [0.1, None, True, "é"]}) == (
        b'{"a":[0.1,null,true,"\\u00e9"],"b":1}'
    )
    assert canonical_json({"a": 1, "b": 2}) == canonical_json({"b": 2, "a": 1})
    assert canonical_json({"a": 1}) != canonical_json({"a": 1.0})


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), [{"x": -float("inf")}]])
def test_numbers_without_a_spelling_are_refused(bad):
    with pytest.raises(ValueError, match="not JSON compliant"):
        canonical_json(bad)


def test_keys_must_be_strings():
    with pytest.raises(TypeError, match="key 1 is not a string"):
        canonical_json({"deep": [{1: "one"}]})


def test_file_hash_is_the_hash_of_its_bytes(tmp_path: Path):
    data = bytes(range(256)) * 5000
    (tmp_path / "f").write_bytes(data)
    assert file_sha256(tmp_path / "f") == sha256_hex(data) == hashlib.sha256(data).hexdigest()
