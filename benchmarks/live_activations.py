"""How fast a live stream gives training vectors, what it cuts off and what it holds in memory.

    python -m benchmarks.live_activations [--buffer 65536] [--data-dir data]

The packaged subject. Harvests the stream's head first if it is not there. Two rates: with nothing
else to do, and beside a loop of matrix products on one thread, as of a run that trains.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import psutil
import torch

from scaling.activations.build import made_live, open_source, prepare
from scaling.activations.source import ActivationSource
from scaling.config import HarvestConfig

BATCH_TOKENS = 2_048
BLOCKS = 3
PRODUCTS = 4
"""Per batch: encoder passes at n = 4,096, as of a few runs that train."""


def main() -> None:
    options = _options()
    config = HarvestConfig(
        model="embedded",
        text="embedded",
        layer=23,
        max_tokens=1_000_000,
        eval_tokens=20_480,
        stream=True,
        buffer_tokens=options.buffer,
    )
    spec = prepare(config, Path(options.data_dir), progress=lambda progress: None)
    torch.set_num_threads(1)
    source, steps = open_source(spec), count()
    before = psutil.Process().memory_info().rss
    began_s = time.perf_counter()
    _batch(source, next(steps))
    print(f"first batch after {time.perf_counter() - began_s:.1f} s (model loaded, a block made)")
    for name, products in (("alone", 0), ("beside training", PRODUCTS)):
        print(f"{name}: {_rate(source, steps, products):,.0f} vectors/s over {BLOCKS} blocks")
    held = psutil.Process().memory_info().rss - before
    print(
        f"cut off: {spec.description['stream']['cut_share']:.2%} of positions; {made_live(source)}"
    )
    print(f"memory: {held / 2**20:,.0f} MiB held, {spec.memory_bytes / 2**20:,.0f} MiB planned")


def _rate(source: ActivationSource, steps: Iterator[int], products: int) -> float:
    """Vectors per second from the end of one block to the end of the last of `BLOCKS` more."""
    x_BD, w_DN = torch.randn(BATCH_TOKENS, 576), torch.randn(576, 4_096)
    ends_s: list[float] = []
    made = first = _made(source)
    while len(ends_s) <= BLOCKS:
        _batch(source, next(steps))
        for _ in range(products):
            x_BD @ w_DN
        if _made(source) > made:
            made = _made(source)
            first = first if ends_s else made
            ends_s.append(time.perf_counter())
    return (made - first) / (ends_s[-1] - ends_s[0])


def _made(source: ActivationSource) -> int:
    counts = made_live(source)
    assert counts is not None
    return counts["vectors"]


def _batch(source: ActivationSource, step: int) -> None:
    source.train_batch(seed=0, step=step, batch_tokens=BATCH_TOKENS, shuffle_block=1)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--buffer", type=int, default=65_536)
    parser.add_argument("--data-dir", default="data")
    return parser.parse_args()


if __name__ == "__main__":
    main()
