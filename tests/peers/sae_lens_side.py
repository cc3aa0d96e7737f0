"""What sae-lens makes of our folders, and folders of its own. Runs in its environment alone.

    python sae_lens_side.py ROOT

ROOT/x.safetensors holds activations. Of each folder ROOT/ours/NAME the library's reconstruction and
latents go to ROOT/ours/NAME/theirs.safetensors. Then ROOT/theirs/NAME are folders that the library
saves of autoencoders with random weights, each with its theirs.safetensors.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import sae_lens
import torch
from safetensors.torch import load_file, save_file

D, N = 24, 96

VARIANTS = {
    "standard": ("standard", {}),
    "standard_layer_norm": ("standard", {"normalize_activations": "layer_norm"}),
    "standard_untied": ("standard", {"apply_b_dec_to_input": False}),
    "topk": ("topk", {"k": 5}),
    "topk_layer_norm": ("topk", {"k": 5, "normalize_activations": "layer_norm"}),
    "topk_constant_norm": ("topk", {"k": 5, "normalize_activations": "constant_norm_rescale"}),
    "topk_by_decoder_norm": ("topk", {"k": 5, "rescale_acts_by_decoder_norm": True}),
    "jumprelu": ("jumprelu", {}),
    "jumprelu_untied": ("jumprelu", {"apply_b_dec_to_input": False}),
    "gated": ("gated", {}),
    "gated_untied": ("gated", {"apply_b_dec_to_input": False}),
}


def main(root: Path) -> None:
    x_BD = load_file(root / "x.safetensors")["x"]
    for folder in sorted((root / "ours").iterdir()):
        _answer(sae_lens.SAE.load_from_disk(folder), x_BD, folder)
    torch.manual_seed(0)
    for name, (architecture, options) in VARIANTS.items():
        sae = _random(architecture, options)
        folder = root / "theirs" / name
        sae.save_model(folder)
        _answer(sae, x_BD[:, :D].contiguous(), folder)
    print(json.dumps({"sae_lens": sae_lens.__version__, "torch": torch.__version__}))


@torch.no_grad()
def _answer(sae, x_BD, folder: Path) -> None:
    answer = {"recon": sae(x_BD).contiguous(), "latents": sae.encode(x_BD).contiguous()}
    save_file(answer, folder / "theirs.safetensors")


def _random(architecture: str, options: dict):
    sae_class, config_class = sae_lens.registry.get_sae_class(architecture)
    sae = sae_class(config_class(d_in=D, d_sae=N, **options))
    for name, parameter in sae.named_parameters():
        values = torch.randn_like(parameter) * (0.3 if parameter.dim() == 1 else D**-0.5)
        parameter.data = values.abs() if name == "threshold" else values
    return sae


if __name__ == "__main__":
    main(Path(sys.argv[1]))
