"""Room for the processes of runs: one slot per rank, each some CPU threads or a GPU."""

from __future__ import annotations

from collections.abc import Sequence


class Slots:
    """Which slots are free, and the GPUs that go with those taken."""

    def __init__(self, n: int, devices: Sequence[str] | None = None) -> None:
        """`devices`: the GPUs; where there are fewer than slots, several slots share one."""
        self._devices = [devices[i % len(devices)] for i in range(n)] if devices else None
        self._free = list(range(n))
        self._taken: dict[str, list[int]] = {}
        """By run."""

    def fit(self, wanted: int) -> bool:
        """Whether a run of so many ranks can start now.

        One with more ranks than there are cores may, alone: it only takes longer.
        """
        return self._choice(wanted) is not None

    def take(self, run_id: str, wanted: int) -> str | None:
        """Its CUDA_VISIBLE_DEVICES, where there are GPUs. For what fits."""
        choice = self._choice(wanted)
        assert choice is not None
        self._free = [slot for slot in self._free if slot not in choice]
        self._taken[run_id] = choice
        return ",".join(self._devices[slot] for slot in choice) if self._devices else None

    def give_back(self, run_id: str) -> None:
        """Harmless for a run that has none."""
        self._free = sorted(self._free + self._taken.pop(run_id, []))

    def _choice(self, wanted: int) -> list[int] | None:
        if self._devices is None:
            fits = wanted <= len(self._free) or not self._taken
            return self._free[:wanted] if fits else None
        by_device = {self._devices[slot]: slot for slot in reversed(self._free)}
        chosen = sorted(by_device.values())[:wanted]  # no two ranks of a run on one GPU
        return chosen if len(chosen) == wanted else None
