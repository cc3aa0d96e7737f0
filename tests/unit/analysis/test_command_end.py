"""How a command ends when it is interrupted, or nobody reads what it prints."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from analysis.command import run

ROOT = Path(__file__).parents[3]
MAINS = [*(ROOT / "analysis").glob("*.py"), *(ROOT / "analysis").glob("*/__main__.py")]


@pytest.mark.parametrize("code", [0, 2])
def test_the_code_is_the_commands(code: int) -> None:
    with pytest.raises(SystemExit) as end:
        run(lambda: code)
    assert end.value.code == code


def test_an_interrupt_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted() -> int:
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as end:
        run(interrupted)
    assert end.value.code == 130
    assert capsys.readouterr().err.startswith("error: interrupted")


def test_a_closed_pipe_ends_in_silence() -> None:
    script = "from analysis.command import run; run(lambda: print('line\\n' * 99_999) or 0)"
    read, write = os.pipe()
    os.close(read)
    ended = subprocess.run(
        [sys.executable, "-c", script],
        stdout=write,
        stderr=subprocess.PIPE,
        cwd=ROOT,
        timeout=60,
        check=False,
    )
    os.close(write)
    assert (ended.returncode, ended.stderr) == (141, b"")


@pytest.mark.parametrize("path", MAINS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_command_ends_so(path: Path) -> None:
    text = path.read_text()
    assert "SystemExit(" not in text or path.name == "command.py"
    if path.name == "__main__.py" or "__main__" in text:
        assert "    run(" in text or "\nrun(" in text
