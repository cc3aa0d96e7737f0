"""A file of someone else's cannot run code, and is looked at before it is believed."""

from __future__ import annotations

import io
import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import scaling
from scaling.errors import UserError
from scaling.interchange import openai, sae_lens, sparsify
from tests.portables import D, K, N, random_portable


class Payload:
    """Unpickled by an ordinary unpickler, it creates a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.mark,)


def state_dict(mark: Path) -> dict[str, Any]:
    """All that a TopK autoencoder has, and a statistic that is a program."""
    return {
        "encoder.weight": torch.zeros(N, D),
        "decoder.weight": torch.zeros(D, N),
        "latent_bias": torch.zeros(N),
        "pre_bias": torch.zeros(D),
        "activation": "TopK",
        "activation_state_dict": {"k": K, "postact_fn": "ReLU"},
        "stats_last_nonzero": Payload(mark),
    }


def as_zip(path: Path, mark: Path) -> None:
    torch.save(state_dict(mark), path)
    assert zipfile.is_zipfile(path)


def as_legacy(path: Path, mark: Path) -> None:
    torch.save(state_dict(mark), path, _use_new_zipfile_serialization=False)
    assert not zipfile.is_zipfile(path)


def as_bare_pickle(path: Path, mark: Path) -> None:
    path.write_bytes(pickle.dumps({"encoder.weight": Payload(mark)}))


def as_the_whole(path: Path, mark: Path) -> None:
    torch.save(Payload(mark), path)


def as_zip_with_a_pickle_put_in_its_place(path: Path, mark: Path) -> None:
    whole = io.BytesIO()
    torch.save({"encoder.weight": torch.zeros(2, 2)}, whole)
    with zipfile.ZipFile(whole) as source, zipfile.ZipFile(path, "w") as target:
        for name in source.namelist():
            data = pickle.dumps(Payload(mark)) if name.endswith("data.pkl") else source.read(name)
            target.writestr(name, data)


@pytest.mark.parametrize(
    "write",
    [as_zip, as_legacy, as_bare_pickle, as_the_whole, as_zip_with_a_pickle_put_in_its_place],
)
def test_a_malicious_pickle_is_refused_and_not_executed(
    tmp_path: Path, write: Callable[[Path, Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    mark, path = tmp_path / "executed", tmp_path / "autoencoder.pt"
    write(path, mark)
    # A variable that opens torch's other door for callers who do not say which they want.
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    for source in (path, tmp_path):
        with pytest.raises(UserError, match=r"is refused: it is damaged, or holds more than"):
            scaling.load_autoencoder(source)
    assert not mark.exists()
    execute(path)
    assert mark.exists()  # the payload was a live one


def execute(path: Path) -> None:
    """Open the file by the door that is never used."""
    try:
        torch.load(path, weights_only=False)
    except Exception:
        pickle.loads(path.read_bytes())


@pytest.mark.parametrize("content", [b"", b"not a pickle", b"\x80\x02N."])
def test_a_damaged_pickle_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "autoencoder.pt"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"autoencoder\.pt"):
        scaling.load_autoencoder(path)


def released() -> dict[str, Any]:
    found = state_dict(Path())
    return {**found, "stats_last_nonzero": torch.zeros(N, dtype=torch.long)}


OPENAI_CASES: dict[str, tuple[dict[str, Any], str]] = {
    "one number as a matrix": (
        {"encoder.weight": torch.zeros(1).expand(N, D)},
        "encoder.weight is not a dense tensor held by the file",
    ),
    "sparse": (
        {"encoder.weight": torch.zeros(N, D).to_sparse()},
        "encoder.weight is not a dense tensor",
    ),
    "meta": ({"pre_bias": torch.zeros(D, device="meta")}, "pre_bias is not a dense tensor"),
    "whole numbers": ({"latent_bias": torch.zeros(N, dtype=torch.long)}, "has dtype int64"),
    "no tensor": ({"latent_bias": [0.0] * N}, "latent_bias is not a dense tensor"),
    "decoder not transposed": ({"decoder.weight": torch.zeros(N, D)}, r"not \[24, 96\]"),
    "nan": ({"pre_bias": torch.full((D,), torch.nan)}, "pre_bias holds values that are not"),
    "too large": (
        {"pre_bias": torch.full((D,), 1e300, dtype=torch.float64)},
        "not finite numbers in float32",
    ),
    "k of another type": ({"activation_state_dict": {"k": "32"}}, "k='32' must lie in"),
    "k above n": ({"activation_state_dict": {"k": N + 1}}, "k=97 must lie in"),
    "signed latents": (
        {"activation_state_dict": {"k": K, "postact_fn": "Identity"}},
        "postact_fn='Identity'",
    ),
    "unknown activation": ({"activation": "Softplus"}, "activation='Softplus' cannot be read"),
    "more weights": ({"W_skip": torch.zeros(D, D)}, "holds W_skip, which"),
}


@pytest.mark.parametrize("case", OPENAI_CASES)
def test_openai_files_that_are_wrong(tmp_path: Path, case: str) -> None:
    changes, says = OPENAI_CASES[case]
    path = tmp_path / "some.pt"
    torch.save({**released(), **changes}, path)
    with pytest.raises(UserError, match=says):
        scaling.load_autoencoder(path)


def test_the_released_layout_as_it_is(tmp_path: Path) -> None:
    """The cases above fail for what they change."""
    torch.save(released(), tmp_path / "some.pt")
    facts = scaling.load_autoencoder(tmp_path / "some.pt").facts
    assert (facts.n_latents, facts.d_model, facts.k) == (N, D, K)
    tied = released()
    tied["decoder.linear.weight"] = tied["encoder.weight"] = torch.rand(N, D)
    del tied["decoder.weight"]
    torch.save(tied, tmp_path / "tied.pt")
    model = scaling.load_autoencoder(tmp_path / "tied.pt")
    assert torch.equal(model.w_dec, model.w_enc)
    flat = {**released(), "activation.k": 3, "activation.postact_fn": "ReLU"}
    torch.save(flat, tmp_path / "both.pt")
    assert scaling.load_autoencoder(tmp_path / "both.pt").facts.k == K
    del flat["activation_state_dict"]
    torch.save(flat, tmp_path / "flat.pt")
    assert scaling.load_autoencoder(tmp_path / "flat.pt").facts.k == 3
    less = released()
    del less["pre_bias"]
    torch.save(less, tmp_path / "less.pt")
    with pytest.raises(UserError, match="has no tensor pre_bias"):
        scaling.load_autoencoder(tmp_path / "less.pt")


def spoil(folder: Path, file: str, change: Callable[[dict[str, Tensor]], None]) -> None:
    tensors = load_file(folder / file)
    change(tensors)
    save_file(tensors, folder / file)


TENSOR_CASES: dict[str, tuple[Callable[[dict[str, Tensor]], None], str]] = {
    "transposed": (lambda t: t.update(W_dec=t["W_dec"].T.contiguous()), r"W_dec has shape"),
    "one less": (lambda t: t.update(b_dec=t["b_dec"][:-1].clone()), r"b_dec has shape \[23\]"),
    "whole numbers": (lambda t: t.update(b_dec=t["b_dec"].long()), "b_dec has dtype int64"),
    "infinite": (lambda t: t.update(W_dec=t["W_dec"] / 0), "W_dec holds values that are not"),
    "absent": (lambda t: t.__delitem__("b_dec"), "has no tensor b_dec"),
    "more": (lambda t: t.update(W_skip=torch.zeros(2)), "holds W_skip"),
}


@pytest.mark.parametrize("case", TENSOR_CASES)
@pytest.mark.parametrize("module", [sae_lens, sparsify])
def test_tensors_that_are_wrong(tmp_path: Path, module: Any, case: str) -> None:
    change, says = TENSOR_CASES[case]
    module.write(random_portable(), tmp_path)
    spoil(tmp_path, module.WEIGHTS, change)
    with pytest.raises(UserError, match=says):
        scaling.load_autoencoder(tmp_path)


CONFIG_CASES = [
    (sae_lens, {"architecture": "transcoder"}, "architecture='transcoder': it cannot be read"),
    (sae_lens, {"normalize_activations": "expected_average_only_in"}, "scales by is not in the"),
    (sae_lens, {"reshape_activations": "hook_z"}, "reshape_activations='hook_z'"),
    (sae_lens, {"activation_fn": "tanh-relu"}, "activation_fn='tanh-relu'"),
    (sae_lens, {"d_in": "24"}, "d_in='24' must be a whole number"),
    (sae_lens, {"k": N + 1}, "k=97 is more than d_sae=96"),
    (sae_lens, {"k": True}, "k=True must be a whole number"),
    (sae_lens, {"d_sae": 10**12}, r"not \[24, 1000000000000\]"),
    (sparsify, {"activation": "groupmax"}, "activation='groupmax': it cannot be read"),
    (sparsify, {"transcode": True}, "transcode=true"),
    (sparsify, {"skip_connection": True}, "skip_connection=true"),
    (sparsify, {"k": 0}, "k=0 must be a whole number"),
    (sparsify, {"k": N + 1}, "k=97 is more than num_latents=96"),
    (sparsify, {"sae_scaling": {"normalization": "cube"}}, "normalization='cube'"),
    (sparsify, {"sae_scaling": [1]}, "sae_scaling=\\[1\\] must be an object"),
]


@pytest.mark.parametrize(("module", "changes", "says"), CONFIG_CASES)
def test_settings_that_are_wrong(
    tmp_path: Path, module: Any, changes: dict[str, Any], says: str
) -> None:
    module.write(random_portable(), tmp_path)
    path = tmp_path / "cfg.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    with pytest.raises(UserError, match=says):
        scaling.load_autoencoder(tmp_path)


@pytest.mark.parametrize("content", ["", "[1]", "{", "[" * 100_000])
def test_json_that_is_none(tmp_path: Path, content: str) -> None:
    sae_lens.write(random_portable(), tmp_path)
    (tmp_path / "cfg.json").write_text(content)
    with pytest.raises(UserError, match=r"cfg\.json"):
        scaling.load_autoencoder(tmp_path)


def test_a_file_that_is_no_safetensors(tmp_path: Path) -> None:
    sae_lens.write(random_portable(), tmp_path)
    (tmp_path / sae_lens.WEIGHTS).write_bytes(pickle.dumps(Payload(tmp_path / "executed")))
    with pytest.raises(UserError, match="cannot be read as safetensors"):
        scaling.load_autoencoder(tmp_path)
    assert not (tmp_path / "executed").exists()


def test_options_that_make_finite_weights_infinite_are_refused(tmp_path: Path) -> None:
    scaled = tmp_path / "scaled"
    scaled.mkdir()
    sae_lens.write(random_portable(), scaled)
    config = json.loads((scaled / sae_lens.CONFIG).read_text())
    config["rescale_acts_by_decoder_norm"] = True
    (scaled / sae_lens.CONFIG).write_text(json.dumps(config))
    assert scaling.load_autoencoder(scaled).facts.k == K
    spoil(scaled, sae_lens.WEIGHTS, lambda t: t["W_dec"][3].zero_())
    with pytest.raises(UserError, match=r"w_dec of the autoencoder is not finite .* norm 0"):
        scaling.load_autoencoder(scaled)
    sae_lens.write(random_portable("gated"), tmp_path)
    spoil(tmp_path, sae_lens.WEIGHTS, lambda t: t["r_mag"].fill_(1000))
    with pytest.raises(UserError, match="r_mag of the autoencoder is not finite"):
        scaling.load_autoencoder(tmp_path)


def test_values_in_the_place_of_a_tensors_methods_are_not_read(tmp_path: Path) -> None:
    state = released()
    state["pre_bias"].__dict__ |= {"detach": 5, "dim": "x"}
    torch.save(state, tmp_path / "some.pt")
    assert scaling.load_autoencoder(tmp_path / "some.pt").facts.k == K


def test_a_missing_tensor_is_told_with_what_is_left(tmp_path: Path) -> None:
    sae_lens.write(random_portable(), tmp_path)
    spoil(tmp_path, sae_lens.WEIGHTS, lambda t: t.__delitem__("b_dec"))
    with pytest.raises(UserError, match=r"no tensor b_dec .besides what was read, it has nothing"):
        scaling.load_autoencoder(tmp_path)


def test_a_name_too_long_for_a_file_is_no_autoencoder() -> None:
    with pytest.raises(UserError, match="no such file or folder"):
        scaling.load_autoencoder("a" * 5000)


def test_a_disk_that_fills_up_under_a_pickle_says_so(tmp_path: Path) -> None:
    (tmp_path / openai.WEIGHTS).symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left"):
        openai.write(random_portable("topk", "std"), tmp_path)


def test_half_precision_is_read_in_float32(tmp_path: Path) -> None:
    portable = random_portable()
    sparsify.write(portable, tmp_path)
    spoil(tmp_path, sparsify.WEIGHTS, lambda t: t.update({n: v.bfloat16() for n, v in t.items()}))
    model = scaling.load_autoencoder(tmp_path)
    assert torch.equal(model.w_enc, portable.weights["w_enc"].bfloat16().float())


def test_sae_lens_folders_of_before_6(tmp_path: Path) -> None:
    portable = random_portable()
    sae_lens.write(portable, tmp_path)
    old = {
        "d_in": D,
        "d_sae": N,
        "dtype": "torch.float32",
        "activation_fn_str": "topk",
        "activation_fn_kwargs": {"k": 3},
        "hook_point": "blocks.8.hook_resid_post",
        "normalize_activations": None,
        "finetuning_scaling_factor": False,
    }
    (tmp_path / "cfg.json").write_text(json.dumps(old))
    spoil(tmp_path, sae_lens.WEIGHTS, lambda t: t.update(scaling_factor=torch.ones(N)))
    facts = scaling.load_autoencoder(tmp_path).facts
    assert (facts.k, facts.normalization) == (3, "none")
    assert facts.more["hook_name"] == "blocks.8.hook_resid_post"
    for key, value, says in [
        ("normalize_activations", True, "normalize_activations='expected_average_only_in'"),
        ("hook_point", "blocks.8.attn.hook_z", "reshape_activations='hook_z'"),
    ]:
        (tmp_path / "cfg.json").write_text(json.dumps({**old, key: value}))
        with pytest.raises(UserError, match=says):
            scaling.load_autoencoder(tmp_path)
    (tmp_path / "cfg.json").write_text(json.dumps(old))
    spoil(tmp_path, sae_lens.WEIGHTS, lambda t: t.update(scaling_factor=torch.full((N,), 2.0)))
    with pytest.raises(UserError, match="holds scaling_factor"):
        scaling.load_autoencoder(tmp_path)


def test_the_payload_is_what_it_claims(tmp_path: Path) -> None:
    buffer = io.BytesIO(pickle.dumps(Payload(tmp_path / "executed")))
    pickle.load(buffer)
    assert (tmp_path / "executed").exists()


def test_openai_writes_what_is_read(tmp_path: Path) -> None:
    """With strict loading the released code accepts these names and no others."""
    openai.write(random_portable("topk", "std"), tmp_path)
    found = torch.load(tmp_path / "autoencoder.pt", weights_only=True)
    assert sorted(found) == sorted(
        [*released(), "latents_activation_frequency", "latents_mean_square"]
    )


ODD_VALUES = [None, [], {}, "x", -1, 0, 1.5, True, [1], {"k": []}, 10**30]


@pytest.mark.parametrize("module", [sae_lens, sparsify])
def test_any_value_of_any_key_loads_or_is_refused(tmp_path: Path, module: Any) -> None:
    """Never another error: no value of a setting is believed to be of its type."""
    module.write(random_portable(), tmp_path)
    path = tmp_path / "cfg.json"
    config = json.loads(path.read_text())
    old = ["activation_fn", "activation_fn_kwargs", "hook_name", "apply_b_dec_to_input"]
    refused = 0
    for key in [*config, *old]:
        for value in ODD_VALUES:
            path.write_text(json.dumps({**config, key: value}))
            try:
                scaling.load_autoencoder(tmp_path)
            except UserError:
                refused += 1
    assert refused > 20
    path.write_text("{}")
    with pytest.raises(UserError):
        scaling.load_autoencoder(tmp_path)
