"""The CPU backend: native passes over tokens and latents, the fastest exact encoder matmul."""

from scaling.kernels.cpu.build import NativeUnavailableError, native_library, native_name
from scaling.kernels.cpu.kernels import CpuKernels
from scaling.kernels.cpu.select import MATMULS

__all__ = ["MATMULS", "CpuKernels", "NativeUnavailableError", "native_library", "native_name"]
