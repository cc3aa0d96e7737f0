"""The CPU backend: native passes over tokens and latents, the fastest exact encoder matmul."""

from scaling.kernels.cpu.build import NativeUnavailableError
from scaling.kernels.cpu.kernels import CpuKernels

__all__ = ["CpuKernels", "NativeUnavailableError"]
