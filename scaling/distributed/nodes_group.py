"""The ranks of one try on several nodes, as the supervisor on the first sees them."""

from __future__ import annotations

import time

from scaling.distributed.attempt_folder import AttemptFolder
from scaling.distributed.board import Board, Try
from scaling.distributed.ranks import NODE_LOST, Ended, RankGroup
from scaling.runs.record import RunError

LOST_AFTER_S = 15.0
"""A node that is silent for this long is gone."""
END_WITHIN_S = 5.0
"""After the first failure, ranks here that notice nothing are killed."""


class NodesGroup:
    """A `RankGroup`: this node's ranks, and those of the nodes at the board."""

    def __init__(
        self, here: RankGroup, board: Board, n_nodes: int, *, number: int, token: int
    ) -> None:
        self._here, self._board, self._others = here, board, range(1, n_nodes)
        self._number, self._token = number, token
        self._ended: dict[int, Ended] = {}
        """By node."""
        self._failed_since_s: float | None = None

    def start(self, attempt: AttemptFolder) -> None:
        self._board.announce(Try(self._number, attempt.path.absolute(), self._token))
        self._here.start(attempt)

    def poll(self) -> Ended | None:
        self._listen()
        if not all(ended.is_clean for ended in self._ended.values()):
            self._end_everywhere()
        if len(self._ended) <= len(self._others):
            return None
        merged = Ended()
        for ended in self._ended.values():
            merged |= ended
        return merged

    def stop(self) -> None:
        self._board.end_try(self._number)
        self._here.stop()

    def _listen(self) -> None:
        if 0 not in self._ended and (ended := self._here.poll()) is not None:
            self._ended[0] = ended
        for node in self._others:
            if node in self._ended:
                continue
            silent_s = self._board.silent_s(node)
            if (told := self._board.read_report(self._number, node)) is not None:
                self._ended[node] = told
            elif silent_s > LOST_AFTER_S:
                message = f"node {node} has shown no sign of life for {silent_s:.0f} s"
                self._ended[node] = Ended(problem=RunError(NODE_LOST, message))

    def _end_everywhere(self) -> None:
        """Tell the others at once; here, ranks that wait for one that is gone soon notice, and say
        more by themselves than when they are killed."""
        if self._failed_since_s is None:
            self._failed_since_s = time.monotonic()
            self._board.end_try(self._number)
        if time.monotonic() - self._failed_since_s > END_WITHIN_S:
            self._here.stop()
