"""What eai-sparsify makes of our folders, and folders of its own. Runs in its environment alone.

python sparsify_side.py ROOT                  (as sae_lens_side.py)
"""

from __future__ import annotations

import json
import sys
from importlib.metadata import version
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from sparsify import SparseCoder
from sparsify.config import SparseCoderConfig

D = 24

VARIANTS = {"num_latents": {"num_latents": 96, "k": 5}, "factor": {"expansion_factor": 4, "k": 7}}


def main(root: Path) -> None:
    x_BD = load_file(root / "x.safetensors")["x"]
    for folder in sorted((root / "ours").iterdir()):
        _answer(SparseCoder.load_from_disk(folder), x_BD, folder)
    torch.manual_seed(0)
    for name, options in VARIANTS.items():
        coder = SparseCoder(D, SparseCoderConfig(**options))
        for parameter in coder.parameters():
            parameter.data = torch.randn_like(parameter) * (0.3 if parameter.dim() == 1 else 0.2)
        folder = root / "theirs" / name
        coder.save_to_disk(folder)
        _answer(coder, x_BD[:, :D].contiguous(), folder)
    print(json.dumps({"sparsify": version("eai-sparsify"), "torch": torch.__version__}))


@torch.no_grad()
def _answer(coder: SparseCoder, x_BD: torch.Tensor, folder: Path) -> None:
    values_BK, ids_BK, pre_BN = coder.encode(x_BD)
    recon_BD = coder.decode(values_BK, ids_BK)
    latents_BN = torch.zeros_like(pre_BN).scatter_(1, ids_BK, values_BK)
    answer = {"recon": recon_BD.contiguous(), "latents": latents_BN}
    save_file(answer, folder / "theirs.safetensors")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
