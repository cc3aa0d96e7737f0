"""The operations of a TopK autoencoder, behind one interface, with several backends.

Imports only torch, triton and numpy: it runs on a bare GPU machine.
"""

from scaling.kernels.interface import Active, Kernels, load_kernels

__all__ = ["Active", "Kernels", "load_kernels"]
