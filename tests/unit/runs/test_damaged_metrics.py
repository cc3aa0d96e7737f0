"""metrics.jsonl survives damage: a line costs only itself."""

from __future__ import annotations

from pathlib import Path

import pytest

from scaling.runs.logger import keep_rows_up_to, read_rows


@pytest.mark.parametrize(
    "damage",
    [
        *(b"garbage", b"null", b"\x00\x00\x00", b'{"tokens": 3}', b"", b'{"step": true}'),
        *(
            b'{"step": -3}',
            b'{"step": Infinity}',
            b'{"step": 1e30}',
            b'{"step": 1%s}' % (b"0" * 30),
        ),
        *(b"[" * 100_000, b'{"step": 1, "a": ' * 50_000, b'{"step": 1%s}' % (b"0" * 5_000)),
    ],
    ids=lambda damage: damage[:12].decode("ascii"),
)
def test_a_damaged_line_costs_only_itself(tmp_path: Path, damage: bytes) -> None:
    path = tmp_path / "metrics.jsonl"
    good = [b'{"step": 1, "tokens": 10}', b'{"step": 2, "tokens": 20}']
    path.write_bytes(b"\n".join([good[0], damage, good[1], b""]))
    assert [row["step"] for row in read_rows(path)] == [1, 2]
    keep_rows_up_to(path, 1)
    assert [row["step"] for row in read_rows(path)] == [1]
