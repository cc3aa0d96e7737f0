"""What a run costs, by arithmetic: parameters, FLOPs, memory, bytes between ranks, time.

No torch, no config: it can be said without starting anything. `python -m scaling.budget` prints it.
"""

from scaling.budget.communication import Transfer, sent_bytes, transfers
from scaling.budget.counts import (
    GIB,
    INIT_SAMPLE_TOKENS,
    decoded_pairs,
    flops_per_token_dense,
    flops_per_token_sparse,
    more_products,
    n_params,
    n_steps,
    power_of_two_near,
)
from scaling.budget.exchange import (
    EXCHANGES,
    MAX_REDONE_SHARE,
    candidate_width,
    capacity_width,
    choose_exchange,
    exchange_bytes_per_token,
    redone_share,
    truncated_share,
)
from scaling.budget.memory import PROCESS_BYTES, host_bytes, memory_parts, rank_bytes
from scaling.budget.shape import Shape
from scaling.budget.together import together_bytes, together_host_bytes

__all__ = [
    "EXCHANGES",
    "GIB",
    "INIT_SAMPLE_TOKENS",
    "MAX_REDONE_SHARE",
    "PROCESS_BYTES",
    "Shape",
    "Transfer",
    "candidate_width",
    "capacity_width",
    "choose_exchange",
    "decoded_pairs",
    "exchange_bytes_per_token",
    "flops_per_token_dense",
    "flops_per_token_sparse",
    "host_bytes",
    "memory_parts",
    "more_products",
    "n_params",
    "n_steps",
    "power_of_two_near",
    "rank_bytes",
    "redone_share",
    "sent_bytes",
    "together_bytes",
    "together_host_bytes",
    "transfers",
    "truncated_share",
]
