"""The compiled functions, and how tensors are handed to them."""

from __future__ import annotations

import ctypes
from ctypes import c_int, c_int64, c_void_p
from functools import cache

import torch
from torch import Tensor

from scaling.kernels.cpu import build


@cache
def functions() -> ctypes.CDLL:
    """native.cpp, compiled and loaded. Raises NativeUnavailableError where it cannot be."""
    library = build.native_library()
    library.sae_finish_rescored.restype = c_int64
    return library


def pointer(tensor: Tensor, dtype: torch.dtype = torch.float32) -> c_void_p:
    """Raises ValueError where the native code would read something else than it was given."""
    if tensor.dtype != dtype or tensor.device.type != "cpu" or not tensor.is_contiguous():
        raise ValueError(
            f"the cpu kernels need dense {dtype} in main memory, not "
            f"{tensor.dtype} on {tensor.device} with strides {tensor.stride()}"
        )
    return c_void_p(tensor.data_ptr())


def threads() -> c_int:
    """As many as torch uses."""
    return c_int(torch.get_num_threads())
