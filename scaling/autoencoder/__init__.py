"""The subject of the science: autoencoders, their losses, initialization and dead latents.

Imports only torch, triton and numpy (and `scaling.kernels`): it knows no config, no process
group and no file.
"""

from scaling.autoencoder.topk import TopKAutoencoder, TopKSpec

__all__ = ["TopKAutoencoder", "TopKSpec"]
