"""Explanations of latents as n-grams with wildcards in a trie: N2G (Neuron to Graph).

One example is a token at which a latent is active with value a in its own context. With a_m the
latent's value there when the m tokens that end at it stand alone, and a_mj when the j-th of these
is a padding token:

    suffix     the shortest m <= max_length with a_m >= ratio a
    wildcard   each j with a_mj > (1 - saliency) a_m; those before the first other token go

The pattern is the suffix with its wildcards, its value the mean of a over the examples that give
it. An example that no suffix explains gives none. Where several patterns of a latent match, the
longest counts, then the one with fewer wildcards (Foote et al. 2023, as Gao et al. 2024 use it).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

WILDCARD = -1
Pattern = tuple[int, ...]
"""Token ids, the LAST first; `WILDCARD` is any token. () matches everywhere."""

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]


def n_variants(max_length: int) -> int:
    """Sequences probed per example: each length whole, and with each of its tokens padded."""
    return max_length * (max_length + 3) // 2


def first_variant(length: int) -> int:
    """Where the variants of a length begin: the whole suffix, then with its tokens padded in turn,
    the first (oldest) first."""
    return (length - 1) * (length + 2) // 2


def pattern_of(
    ids_T: Ints, values: Floats, active: float, ratio: float, saliency: float
) -> Pattern | None:
    """The pattern of one example.

    Args:
        ids_T: tokens up to and with the one where the latent is active; at least as many as the
            longest length that was probed.
        values: of the latent in all variants, `n_variants`; those of suffixes that the context is
            too short for are NaN.
        active: its value in the example's own context, above 0.
    """
    length = 1
    while (at := first_variant(length)) < len(values):
        if values[at] >= ratio * active:
            padded = values[at + 1 : at + 1 + length]
            free = padded > (1 - saliency) * values[at]
            suffix = ids_T[-length:]
            pattern = [WILDCARD if free[j] else int(suffix[j]) for j in reversed(range(length))]
            while pattern and pattern[-1] == WILDCARD:
                pattern.pop()
            return tuple(pattern)
        length += 1
    return None


@dataclass
class Node:
    """Of a trie; its children are one token further back."""

    children: dict[int, Node] = field(default_factory=dict)
    ends: dict[int, list[float]] = field(default_factory=dict)
    """Latents whose pattern ends here, with the values of their examples."""


class Trie:
    """Patterns of many latents."""

    def __init__(self) -> None:
        self.root = Node()

    def add(self, latent: int, pattern: Pattern, value: float) -> None:
        node = self.root
        for token in pattern:
            node = node.children.setdefault(token, Node())
        node.ends.setdefault(latent, []).append(value)

    def matches(self, ids_T: Ints, at: int) -> dict[int, float]:
        """Latents that a pattern says are active at token `at`, with its value."""
        found: dict[int, float] = {}
        # Patterns with more literals come later in each level, and longer ones in later levels.
        level = [(0, self.root)]
        position = at
        while level:
            for _, node in level:
                for latent, values in node.ends.items():
                    found[latent] = sum(values) / len(values)
            if position < 0:
                break
            token = int(ids_T[position])
            level = sorted(_further(level, token), key=lambda entry: entry[0])
            position -= 1
        return found

    def patterns(self) -> Iterator[tuple[int, Pattern, list[float]]]:
        """(latent, pattern, values of its examples), all of them."""
        stack: list[tuple[Pattern, Node]] = [((), self.root)]
        while stack:
            pattern, node = stack.pop()
            for latent, values in node.ends.items():
                yield latent, pattern, values
            stack += [((*pattern, token), child) for token, child in node.children.items()]


def _further(level: list[tuple[int, Node]], token: int) -> Iterator[tuple[int, Node]]:
    """(literal tokens so far, node) of what goes on with the token or with any."""
    for n_literal, node in level:
        for key, more in ((WILDCARD, 0), (token, 1)):
            if key in node.children:
                yield n_literal + more, node.children[key]
