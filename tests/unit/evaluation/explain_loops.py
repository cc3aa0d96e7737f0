"""N2G and the cross-entropy on explanations once more: a pass per sequence, and nothing shared."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from scaling.evaluation.explain import Options
from scaling.evaluation.material import Material
from scaling.interchange.model import LoadedAutoencoder
from tests.unit.evaluation.drawn import ratio_error

Reading = tuple[int | None, ...]
"""A pattern in reading order; None is any token."""

Losses = list[list[float]]
"""Of each context the cross-entropies of its tokens."""


class Loops:
    """All of it once more: a forward pass per sequence, every pattern tried at every token."""

    def __init__(self, material: Material, sae: LoadedAutoencoder, options: Options) -> None:
        self.subject, self.sae, self.options = material.subject, sae, options
        self.ids = material.ids_CT
        self.residual = self.subject.residual(self.ids)
        self.max_norm = material.held_out.max_norm
        self.kept = self.residual.norm(dim=2) <= self.max_norm
        self.kept[:, 0] = False
        self.z = sae.latents(self.residual) * self.kept[:, :, None]
        places = [(c, t) for c, t in self.kept.nonzero().tolist()]
        self.build = [(c, t) for c, t in places if c % 2 == 0]
        self.test = [(c, t) for c, t in places if c % 2 == 1]
        self.seen: dict[tuple[int, ...], Tensor] = {}
        self.of_all: dict[int, dict[Reading, list[float]]] = {n: {} for n in range(len(sae.w_dec))}
        self.of_top: dict[int, set[Reading]] = {n: set() for n in range(len(sae.w_dec))}
        self._explain()

    def _explain(self) -> None:
        rng = np.random.default_rng(self.options.seed)
        probed = set(map(tuple, rng.permutation(np.array(self.build))[: self.options.shared]))
        tops = {n: self._top(n) for n in self.sampled()}
        for c, t in sorted(probed | {place for own in tops.values() for place in own}):
            for n in self.z[c, t].nonzero()[:, 0].tolist():
                if (pattern := self._pattern(c, t, n)) is not None:
                    self.of_all[n].setdefault(pattern, []).append(float(self.z[c, t, n]))
                    if (c, t) in tops.get(n, []):
                        self.of_top[n].add(pattern)

    def sampled(self) -> list[int]:
        return [
            n for n in self.of_all if self._active(n, self.build) and self._active(n, self.test)
        ]

    def _active(self, n: int, places: list[tuple[int, int]]) -> set[tuple[int, int]]:
        return {(c, t) for c, t in places if self.z[c, t, n] > 0}

    def _top(self, n: int) -> list[tuple[int, int]]:
        ranked = sorted(
            self._active(n, self.build), key=lambda at: (-float(self.z[at[0], at[1], n]), at)
        )
        return ranked[: self.options.examples]

    def _value(self, tokens: list[int], n: int) -> float:
        if (key := tuple(tokens)) not in self.seen:
            ids = torch.tensor([[self.subject.padding, *tokens]])
            x_1D = self.subject.residual(ids)[0, -1:]
            self.seen[key] = self.sae.latents(x_1D)[0] * (x_1D.norm() <= self.max_norm)
        return float(self.seen[key][n])

    def _pattern(self, c: int, t: int, n: int) -> Reading | None:
        for m in range(1, min(self.options.max_length, t + 1) + 1):
            suffix: list[int] = self.ids[c, t - m + 1 : t + 1].tolist()
            if (whole := self._value(suffix, n)) >= 0.5 * float(self.z[c, t, n]):
                out: list[int | None] = []
                for j, token in enumerate(suffix):
                    padded = [*suffix[:j], self.subject.padding, *suffix[j + 1 :]]
                    is_free = self._value(padded, n) > 0.5 * whole
                    out += [] if is_free and not out else [None if is_free else token]
                return tuple(out)
        return None

    def fits(self, pattern: Reading, c: int, t: int) -> bool:
        start = t + 1 - len(pattern)
        there = self.ids[c, max(start, 0) : t + 1].tolist()
        return start >= 0 and all(p in (None, s) for p, s in zip(pattern, there, strict=True))

    def rates(self, n_top: int | None = None) -> tuple[float, float]:
        """Precision and recall, on all contexts or on those of the `n_top` strongest."""
        precisions, recalls = [], []
        for n in self.sampled():
            true = self._active(n, self.test)
            ranked = sorted(true, key=lambda at: (-float(self.z[at[0], at[1], n]), at))
            contexts = {c for c, _ in (self.test if n_top is None else ranked[:n_top])}
            places = [(c, t) for c, t in self.test if c in contexts]
            said = {at for at in places if any(self.fits(p, *at) for p in self.of_top[n])}
            true = self._active(n, places)
            recalls.append(len(said & true) / len(true))
            precisions += [len(said & true) / len(said)] if said else []
        return float(np.mean(precisions)), float(np.mean(recalls))

    def said(self) -> Tensor:
        """Values by patterns of all probed tokens, not scaled."""
        s = torch.zeros_like(self.z)
        for c, t in self.build + self.test:
            for n, patterns in self.of_all.items():
                own = [p for p in patterns if self.fits(p, c, t)]
                if own:
                    best = max(own, key=lambda p: (len(p), sum(x is not None for x in p)))
                    s[c, t, n] = float(np.mean(patterns[best]))
        return s

    def cross_entropy(self) -> Losses:
        s = self.said()
        scale_N = (s * self.z)[::2].sum((0, 1)) / (s * s)[::2].sum((0, 1)).clamp_min(1e-9)
        x = self.residual[1::2]
        mean = x.mean(-1, keepdim=True)
        recon = (s * scale_N)[1::2] @ self.sae.w_dec + self.sae.b_pre
        return self.ce_of(recon * (x - mean).norm(dim=-1, keepdim=True) + mean)

    def ce_of(self, recon: Tensor) -> Losses:
        """With these vectors in the place of kept ones, of the contexts tested."""
        x, kept, ids = self.residual[1::2], self.kept[1::2], self.ids[1::2]
        with torch.no_grad():
            logits = self.subject.logits(ids, torch.where(kept[:, :, None], recon, x))[:, :-1]
        of_each = cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
        contexts = zip(of_each.view(len(ids), -1), kept[:, :-1], strict=True)
        return [of_context[predicts].tolist() for of_context, predicts in contexts]

    def baselines(self) -> dict[str, Losses]:
        x = self.residual[1::2]
        mean_D = torch.stack([self.residual[c, t] for c, t in self.build]).mean(dim=0)
        return {
            "ce": self.ce_of(x),
            "ce_mean": self.ce_of(mean_D.expand_as(x)),
            "latents_ce": self.ce_of(self.sae.reconstruct(x)),
        }

    def bigram_ce(self, contexts: list[list[int]]) -> Losses:
        """Witten-Bell over the pairs of these contexts, a token after another."""
        seen = Counter(pair for one in contexts for pair in pairwise(one))
        second = Counter(b for one in contexts for b in one[1:])
        total, losses = sum(second.values()), defaultdict(list)
        for c, t in self.test:
            if t + 1 < self.ids.shape[1]:
                a, b = self.ids[c, t : t + 2].tolist()
                p_b = (second[b] + len(second) / self.subject.vocabulary) / (total + len(second))
                after = {pair: count for pair, count in seen.items() if pair[0] == a}
                n_a = sum(after.values())
                given = (after.get((a, b), 0) + len(after) * p_b) / (n_a + len(after))
                losses[c].append(-math.log(given))
        return [losses[c] for c in range(1, len(self.ids), 2)]


def mean_of(losses: Losses) -> float:
    return sum(map(sum, losses)) / sum(map(len, losses))


def error_of(losses: Losses, baseline: Losses | None = None) -> float:
    """Of their mean, or of its distance from that of a baseline, as of contexts drawn again."""
    less = [0.0] * len(losses) if baseline is None else [sum(one) for one in baseline]
    apart = [sum(one) - other for one, other in zip(losses, less, strict=True)]
    return ratio_error(apart, [len(one) for one in losses])
