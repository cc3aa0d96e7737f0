"""Tiny subject models with a tiny tokenizer, written to disk: no network, no packaged model."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from scaling.config import HarvestConfig, ModelDtype, StoreDtype

WORDS = [f"w{i}" for i in range(60)]
D_MODEL, N_LAYERS = 16, 3


@pytest.fixture(scope="session")
def llama_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=D_MODEL,
        intermediate_size=32,
        num_hidden_layers=N_LAYERS,
        num_attention_heads=2,
        num_key_value_heads=1,
        vocab_size=64,
        max_position_embeddings=64,
        initializer_range=0.3,
    )
    return _save(LlamaForCausalLM(config), tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="session")
def gpt2_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    config = GPT2Config(n_embd=D_MODEL, n_layer=N_LAYERS, n_head=2, vocab_size=64, n_positions=64)
    return _save(GPT2LMHeadModel(config), tmp_path_factory.mktemp("gpt2"))


@pytest.fixture(scope="session")
def text_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 documents of 90 words: 11 contexts of 8 tokens each."""
    folder = tmp_path_factory.mktemp("text")
    rng = random.Random(0)
    for number in range(60):
        (folder / f"{number:02d}.txt").write_text(" ".join(rng.choices(WORDS, k=90)))
    return folder


ConfigMaker = Callable[..., HarvestConfig]


@pytest.fixture
def harvest_config(llama_folder: Path, text_folder: Path) -> ConfigMaker:
    """A small float32 harvest of the Llama-like model, with changes."""

    def make(**changes: object) -> HarvestConfig:
        defaults: dict[str, object] = {
            "max_tokens": 1200,
            "eval_tokens": 200,
            "model": str(llama_folder),
            "text": str(text_folder),
            "layer": 2,
            "context": 8,
            "batch_contexts": 16,
            "eval_fraction": 0.2,
            "processes": 1,
            "model_dtype": ModelDtype.float32,
            "store_dtype": StoreDtype.float32,
        }
        return HarvestConfig(**{**defaults, **changes})  # pyright: ignore

    return make


def _save(model: LlamaForCausalLM | GPT2LMHeadModel, folder: Path) -> Path:
    model.save_pretrained(folder)
    vocabulary = {word: i for i, word in enumerate(["<unk>", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>").save_pretrained(folder)
    return folder
