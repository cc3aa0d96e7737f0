"""The fields of record.json: the schema of what a run computed and of what it took.

`RESULT_FIELDS` is what the run computed: equal, bit for bit, for equal run ids on equal hardware
with the same engine, kernels and matmul (the plan's `execution`).
Three of them are labels outside that promise, as launches that word them otherwise may plan the
same run: `tokens_requested`, `subject_model` and `subject_params`. `COST_FIELDS` is what it took,
and differs from one time to the next. `peak_memory_bytes` there is an upper bound on CPU: the
resident size also counts pages of memory-mapped activations and what the allocator keeps of earlier
runs of the same worker.
"""

from __future__ import annotations

from typing import NamedTuple


class Field(NamedTuple):
    types: tuple[type, ...]  # of the JSON value; NoneType where null has a meaning
    unit: str
    meaning: str
    optional: bool = False  # absent from records that are older than it


_Null = type(None)
_INT, _FLOAT, _STR, _BOOL = (int,), (float, int), (str,), (bool,)
_BOOL_OR_NULL = (bool, _Null)
_INT_OR_NULL, _FLOAT_OR_NULL, _STR_OR_NULL = (int, _Null), (float, int, _Null), (str, _Null)

RESULT_FIELDS: dict[str, Field] = {
    "autoencoder": Field(_STR, "", "architecture, as in the config group `autoencoder`"),
    "n_latents": Field(_INT, "latents", "width of the autoencoder"),
    "k": Field(_INT_OR_NULL, "latents", "active latents per token; null: an outcome, see l0"),
    "penalty": Field(
        _FLOAT_OR_NULL, "", "weight of the sparsity penalty; null where k fixes sparsity", True
    ),
    "target_l0": Field(
        _FLOAT_OR_NULL, "latents", "L0 that the penalty asks for; null where it asks for none", True
    ),
    "dead_treatment": Field(
        _STR, "", "what is done for dead latents: auxk, ghost_grads, resample, none", True
    ),
    "k_aux": Field(_INT, "latents", "dead latents that the AuxK loss lets model the residual"),
    "dead_after_tokens": Field(_INT, "tokens", "a latent silent for this long is dead"),
    "d_model": Field(_INT, "", "dimensions of an activation vector"),
    "params": Field(
        _INT, "", "trained numbers: w_enc, w_dec, b_enc, b_pre, and an architecture's own"
    ),
    "tokens": Field(_INT, "tokens", "trained on: steps x batch_tokens"),
    "tokens_requested": Field(
        _INT, "tokens", "train.tokens before rounding; a label of the launch that planned the run"
    ),
    "batch_tokens": Field(_INT, "tokens", "per step, over all ranks"),
    "steps": Field(_INT, "steps", "optimizer steps taken"),
    "lr": Field(_FLOAT, "", "peak learning rate, settled (never null)"),
    "decay_fraction": Field(_FLOAT, "share of steps", "last part over which lr falls to 0"),
    "seed": Field(_INT, "", "of initialization and data order"),
    "normalized_mse": Field(_FLOAT_OR_NULL, "", "held-out MSE / MSE of the calibration mean"),
    "normalized_mse_ema": Field(_FLOAT_OR_NULL, "", "the same for the averaged weights"),
    "l0": Field(_FLOAT_OR_NULL, "latents", "mean active latents per held-out token"),
    "l0_ema": Field(
        _FLOAT_OR_NULL, "latents", "the same for the averaged weights, as normalized_mse_ema", True
    ),
    "dead_fraction": Field(
        _FLOAT_OR_NULL,
        "share of latents",
        "silent for dead_after_tokens; null when the run was shorter than that",
    ),
    "silent_fraction_eval": Field(
        _FLOAT_OR_NULL, "share of latents", "silent over the whole held-out set"
    ),
    "train_normalized_mse": Field(_FLOAT_OR_NULL, "", "normalized_mse on as many training vectors"),
    "converged": Field(
        _BOOL_OR_NULL,
        "",
        "train.stop.fall ended the run; false: its tokens did; null: no such rule",
        True,
    ),
    "last_doubling_fall": Field(
        _FLOAT_OR_NULL,
        "share of the loss",
        "by which the last doubling of tokens that train.stop saw lowered normalized_mse_ema",
        True,
    ),
    "flops_dense": Field(_FLOAT, "FLOPs", "of training, every latent counted"),
    "flops_sparse": Field(
        _FLOAT, "FLOPs", "of training, k active latents counted in the decoder; l0 where k is null"
    ),
    "epochs": Field(_FLOAT_OR_NULL, "", "passes over the data; null when it is unlimited"),
    "activations_id": Field(_STR, "", "first 12 hex digits of the training vectors' hash"),
    "eval_hash": Field(_STR, "", "hash of the held-out vectors: equal = comparable losses"),
    "normalization": Field(_STR, "", "of the activation vectors"),
    "subject_model": Field(
        _STR_OR_NULL,
        "",
        'whose activations ("planted": made up); a label of the launch that planned the run',
    ),
    "subject_params": Field(
        _INT_OR_NULL, "", "parameters of the subject model; null where not known; a label", True
    ),
    "layer": Field(_INT_OR_NULL, "blocks", "residual stream after so many; null for planted data"),
    "numerics_version": Field(_INT, "", "raised when the code's results change"),
}

COST_FIELDS: dict[str, Field] = {
    "wall_s": Field(
        _FLOAT,
        "s",
        "of all attempts but those whose process died; of a process that trains several runs by "
        "turns, the run's own part",
    ),
    "train_s": Field(
        _FLOAT,
        "s",
        "of it in the training loop with its evaluations and checkpoints, last attempt",
    ),
    "tokens_per_s": Field(_FLOAT, "tokens/s", "tokens of the last attempt / train_s"),
    "peak_memory_bytes": Field(
        _INT_OR_NULL,
        "bytes",
        "allocated (GPU); resident (CPU), with mapped activations and what earlier runs left; of "
        "one rank, the leading one",
    ),
    "host": Field(_STR, "", "hostname"),
    "cpu": Field(_STR_OR_NULL, "", "processor model"),
    "device": Field(_STR, "", "cpu, or the name of the GPU"),
    "started_at": Field(_STR, "UTC, ISO 8601", "start of the last attempt"),
    "finished_at": Field(_STR, "UTC, ISO 8601", "its end"),
    "commit": Field(_STR_OR_NULL, "", "of this code; null outside its git repository"),
    "commit_dirty": Field((bool, _Null), "", "the working tree differed from that commit"),
    "versions": Field((dict,), "", "of Python and the packages that compute"),
    "bit_exact": Field(
        _BOOL,
        "",
        "false when ever resumed on other hardware or another mesh, in an attempt killed since too",
    ),
    "engine": Field(_STR, "", "that trained"),
    "kernels": Field(_STR, "", "that computed, and the encoder's matmul: cpu/certified"),
    "threads": Field(_INT, "threads", "CPU threads of the run"),
    "mesh": Field((list,), "processes", "data-parallel replicas and latent shards, [dp, latent]"),
    "attempts": Field(_INT, "", "times the run was begun or gone on with"),
    "resumed_at_step": Field(_INT, "steps", "where the last attempt went on; 0 = from the start"),
    "multiplexed": Field(
        _INT, "runs", "that its process trained by turns, on the same batches; 1 = alone", True
    ),
    "live": Field(
        (dict, _Null),
        "vectors",
        "of a live stream, what its process made and dropped, by reason; null: from a store",
        True,
    ),
}
