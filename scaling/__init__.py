"""Sparse autoencoders at many sizes: training, records, weights in and out.

`scaling.load_autoencoder(path or hub id)` reads one for use. Importing this package costs nothing.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from scaling.interchange.load import load_autoencoder

__all__ = ["load_autoencoder"]


def __getattr__(name: str) -> Any:
    if name == "load_autoencoder":
        from scaling.interchange.load import load_autoencoder

        return load_autoencoder
    raise AttributeError(f"module 'scaling' has no attribute {name!r}")
