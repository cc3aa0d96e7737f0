"""Triton kernels for one GPU: streaming selection, one pass per token, one pass per latent."""

from scaling.kernels.gpu.kernels import TritonKernels

__all__ = ["TritonKernels"]
