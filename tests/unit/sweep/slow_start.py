"""The fake runner in a worker that takes its time to start, as one that imports torch does."""

import time

from fake_runs import run

__all__ = ["run"]

time.sleep(2)
