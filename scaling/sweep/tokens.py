"""Token budgets from FLOP budgets: settled once d_model is known, and only as whole tokens.

`train.flops` stands in the place of `train.tokens`; the run's identity has the steps that come of
it, as it has the number that a learning-rate rule gives.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from scaling import budget
from scaling.autoencoder_config import MultiTopKConfig, k_of, name_of, widest_k
from scaling.choices import FlopsConvention
from scaling.config import RunConfig
from scaling.errors import UserError
from scaling.sweep.grid import keep_wanted
from scaling.sweep.ranges import at_least, positive
from scaling.sweep_config import MOST_TOKENS


def settle_tokens(
    points: Sequence[RunConfig], d_model_of: Callable[[RunConfig], int]
) -> list[RunConfig]:
    """The points that their `sweep.where` keeps, each with its train.tokens.

    `d_model_of` is asked where a point has FLOPs only. `where` may name the tokens that come of
    them, and what it drops may be a cell for which the FLOPs buy nothing.

    Raises:
        UserError: a point has neither tokens nor FLOPs, or both; one with FLOPs has no latents to
            spend them on; one that is kept has FLOPs for less than a batch, or without end.
    """
    wanted = keep_wanted([_settled(point, d_model_of) for point in points])
    for point in wanted:
        _check_bought(point)
    return wanted


def _settled(point: RunConfig, d_model_of: Callable[[RunConfig], int]) -> RunConfig:
    train = point.train
    if train.flops is None:
        if not train.tokens:
            raise UserError(
                "train.tokens is not set. Give it on the command line, e.g. train.tokens=1_000_000,"
                " or train.flops=1e15 for as many tokens as those FLOPs train."
            )
        return point
    if train.tokens:
        raise UserError(
            f"train.tokens={train.tokens} and train.flops={train.flops:g} both set the length of "
            "training. Leave one out."
        )
    positive("train.flops", train.flops)
    at_least("autoencoder.n_latents", point.autoencoder.n_latents, 1)
    if (k := k_of(point.autoencoder)) is not None:
        at_least("autoencoder.k", k, 1)
    tokens = int(train.flops / flops_per_token(point, d_model_of(point)))
    return replace(point, train=replace(train, tokens=tokens))


def _check_bought(point: RunConfig) -> None:
    train = point.train
    if train.flops is None:
        return
    if train.tokens > MOST_TOKENS:
        raise UserError(
            f"train.flops={train.flops:g} ({train.flops_convention}) trains {train.tokens:.3g} "
            f"tokens of autoencoder.n_latents={point.autoencoder.n_latents}, more than any run can "
            "train. Lower it."
        )
    if train.tokens < train.batch_tokens:
        raise UserError(
            f"train.flops={train.flops:g} ({train.flops_convention}) trains {train.tokens} tokens "
            f"of autoencoder.n_latents={point.autoencoder.n_latents}, less than one batch "
            f"(train.batch_tokens={train.batch_tokens}). Raise the one or lower the other, or drop "
            "such cells by sweep.where."
        )


def flops_per_token(point: RunConfig, d_model: int) -> int:
    """Training FLOPs of a token, by the point's convention."""
    ae = point.autoencoder
    match point.train.flops_convention:
        case FlopsConvention.dense:
            more = budget.more_products(name_of(ae), dense=True)
            return budget.flops_per_token_dense(ae.n_latents, d_model, more=more)
        case FlopsConvention.sparse:
            if (k := k_of(ae)) is None:
                raise UserError(
                    f"train.flops_convention=sparse with autoencoder={name_of(ae)}: how many of "
                    "its latents are active is not known beforehand. Use "
                    "train.flops_convention=dense."
                )
            wide_k = widest_k(ae) if isinstance(ae, MultiTopKConfig) else None
            more, pairs = budget.more_products(name_of(ae)), budget.decoded_pairs(k, wide_k)
            return budget.flops_per_token_sparse(ae.n_latents, d_model, pairs, more=more)
