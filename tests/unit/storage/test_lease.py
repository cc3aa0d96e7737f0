import errno
import multiprocessing
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from scaling.storage import lease as lease_module
from scaling.storage import process
from scaling.storage.atomic import read_json, write_json
from scaling.storage.lease import Lease, LeaseLost, holder

_HOLD = """
import sys, time
from pathlib import Path
from scaling.storage.lease import Lease
lease = Lease.acquire(Path(sys.argv[1]), timeout_s=float(sys.argv[2]))
print(lease.token if lease else None, flush=True)
time.sleep(60)
"""


def _hold_elsewhere(folder: Path, timeout_s: float) -> subprocess.Popen[str]:
    child = subprocess.Popen(
        [sys.executable, "-c", _HOLD, str(folder), str(timeout_s)],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert child.stdout is not None
    assert child.stdout.readline().strip() == "1"
    return child


def _lease_file(folder: Path, token: int) -> Path:
    return folder / "leases" / f"{token:06d}.json"


def _pretend_held_from(folder: Path, token: int, **changes: object) -> None:
    path = _lease_file(folder, token)
    write_json(path, {**read_json(path), **changes})


def test_held_once_released_and_held_again_with_a_higher_token(tmp_path: Path):
    with Lease.acquire(tmp_path, timeout_s=60) as first:
        assert first.token == 1
        assert Lease.acquire(tmp_path, timeout_s=60) is None
        first.check()
        held = holder(tmp_path)
        assert held is not None
        assert (held["pid"], held["token"]) == (os.getpid(), 1)
    assert holder(tmp_path) is None
    second = Lease.acquire(tmp_path, timeout_s=60)
    assert second is not None
    assert second.token == 2
    with pytest.raises(LeaseLost):
        first.check()
    first.release()
    assert Lease.acquire(tmp_path, timeout_s=60) is None
    second.release()


def _race(folder: Path, rounds: int, barrier, wins) -> None:
    for index in range(rounds):
        barrier.wait()
        won = Lease.acquire(folder / str(index), timeout_s=60)
        wins.put((index, won.token if won else None))
        barrier.wait()


def test_of_two_that_race_exactly_one_wins(tmp_path: Path):
    context = multiprocessing.get_context("spawn")
    rounds, barrier, wins = 150, context.Barrier(2), context.Queue()
    racers = [
        context.Process(target=_race, args=(tmp_path, rounds, barrier, wins)) for _ in range(2)
    ]
    for racer in racers:
        racer.start()
    outcomes = [wins.get(timeout=60) for _ in range(2 * rounds)]
    for racer in racers:
        racer.join()
    for index in range(rounds):
        assert sorted(str(token) for i, token in outcomes if i == index) == ["1", "None"]


def test_the_race_test_catches_a_check_then_write(tmp_path: Path, monkeypatch):
    """The broken variant: replacing the file instead of linking lets both in."""
    monkeypatch.setattr(
        lease_module, "create_json", lambda path, obj: write_json(path, obj) or True
    )
    monkeypatch.setattr(lease_module, "_latest_token", lambda leases: 0)
    assert Lease.acquire(tmp_path, timeout_s=60)
    assert Lease.acquire(tmp_path, timeout_s=60)


def test_a_stale_view_of_the_folder_wins_nothing(tmp_path: Path, monkeypatch):
    for _ in range(3):
        Lease.acquire(tmp_path, timeout_s=60).release()
    for stale in (0, 1, 2):
        monkeypatch.setattr(lease_module, "_latest_token", lambda leases, seen=stale: seen)
        assert Lease.acquire(tmp_path, timeout_s=60) is None


def test_silence_beyond_the_timeout_is_succeeded_and_the_sleeper_learns_it(tmp_path: Path):
    sleeper = Lease.acquire(tmp_path, timeout_s=60)
    stamp = time.time() - 61
    os.utime(_lease_file(tmp_path, 1), (stamp, stamp))
    successor = Lease.acquire(tmp_path, timeout_s=60)
    assert successor is not None
    assert successor.token == 2
    with pytest.raises(LeaseLost, match="taken over by another process"):
        sleeper.check()
    sleeper.release()
    successor.check()
    assert Lease.acquire(tmp_path, timeout_s=60) is None


def test_the_heartbeat_outlives_the_timeout(tmp_path: Path):
    with Lease.acquire(tmp_path, timeout_s=0.4) as held:
        time.sleep(1.0)
        assert Lease.acquire(tmp_path, timeout_s=0.4) is None
        held.check()


def test_a_stopped_holder_is_succeeded_only_after_its_timeout(tmp_path: Path):
    child = _hold_elsewhere(tmp_path, timeout_s=1.0)
    try:
        child.send_signal(19)  # SIGSTOP
        assert Lease.acquire(tmp_path, timeout_s=1.0) is None
        time.sleep(1.3)
        assert Lease.acquire(tmp_path, timeout_s=1.0).token == 2
    finally:
        child.kill()
        child.communicate()


def test_a_killed_holder_on_this_machine_is_succeeded_at_once(tmp_path: Path):
    child = _hold_elsewhere(tmp_path, timeout_s=3600)
    assert Lease.acquire(tmp_path, timeout_s=3600) is None
    child.kill()
    child.stdout.close()
    # Not yet waited for: a zombie is as dead as a reaped process.
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert Lease.acquire(tmp_path, timeout_s=3600).token == 2
    child.wait()


def test_a_reused_pid_does_not_pass_for_the_holder(tmp_path: Path):
    Lease.acquire(tmp_path, timeout_s=3600)
    _pretend_held_from(tmp_path, 1, pid_started=1.0)
    assert Lease.acquire(tmp_path, timeout_s=3600).token == 2


@pytest.mark.parametrize("elsewhere", [{"host": "other"}, {"machine": "another boot"}])
def test_a_pid_of_another_machine_says_nothing(tmp_path: Path, elsewhere):
    Lease.acquire(tmp_path, timeout_s=3600)
    _pretend_held_from(tmp_path, 1, pid=2**22 + 1, **elsewhere)
    assert Lease.acquire(tmp_path, timeout_s=3600) is None


def test_a_damaged_lease_file_counts_until_it_expires(tmp_path: Path):
    Lease.acquire(tmp_path, timeout_s=3600)
    path = _lease_file(tmp_path, 1)
    path.write_bytes(b"")
    assert Lease.acquire(tmp_path, timeout_s=60) is None
    stamp = time.time() - 61
    os.utime(path, (stamp, stamp))
    assert Lease.acquire(tmp_path, timeout_s=60).token == 2


def test_age_is_told_by_the_clock_of_the_files(tmp_path: Path, monkeypatch):
    Lease.acquire(tmp_path, timeout_s=60)
    monkeypatch.setattr(time, "time", lambda: 4e9)  # this host's clock is decades ahead
    assert Lease.acquire(tmp_path, timeout_s=60) is None


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS, errno.ENOSPC])
def test_a_holder_is_seen_where_nothing_can_be_written(tmp_path: Path, monkeypatch, number: int):
    Lease.acquire(tmp_path, timeout_s=60)

    def refuse(path: Path) -> None:
        raise OSError(number, "refused", str(path))

    monkeypatch.setattr(Path, "touch", refuse)
    assert holder(tmp_path)["pid"] == os.getpid()


def test_without_hard_links_creation_is_still_exclusive(tmp_path: Path, monkeypatch):
    def refuse(_self: Path, _target: Path) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    assert Lease.acquire(tmp_path, timeout_s=60).token == 1
    monkeypatch.setattr(lease_module, "_latest_token", lambda leases: 0)
    assert Lease.acquire(tmp_path, timeout_s=60) is None


def test_check_raises_when_the_folder_is_gone(tmp_path: Path):
    lease = Lease.acquire(tmp_path, timeout_s=60)
    _lease_file(tmp_path, 1).unlink()
    with pytest.raises(LeaseLost):
        lease.check()


def test_this_process_is_alive_and_a_finished_one_is_dead():
    me = process.this_process()
    assert not process.is_known_dead(me)
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    assert process.is_known_dead({**me, "pid": child.pid})


@pytest.mark.parametrize(
    ("name", "content"), [("1abc.json", "{}"), ("000001.json", "[]"), ("x.json", "{}")]
)
def test_odd_files_among_the_leases_stop_nobody(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / "leases").mkdir()
    (tmp_path / "leases" / name).write_text(content)
    os.utime(tmp_path / "leases" / name, (1, 1))  # long silent
    holder(tmp_path)
    with Lease.acquire(tmp_path, timeout_s=5) as lease:  # type: ignore[union-attr]
        assert lease.token >= 1
