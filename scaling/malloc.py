"""Settings of glibc's allocator for processes that compute."""

KEEP_PAGES = {
    "MALLOC_MMAP_THRESHOLD_": "1000000000",
    "MALLOC_TRIM_THRESHOLD_": "1000000000",
    "MALLOC_TOP_PAD_": "100000000",
}
"""Tensors of megabytes come and go every step: have glibc keep their pages instead of returning
them to the kernel and faulting them in again (25% of a harvest, 5 to 10% of a training step). An
environment for child processes; without glibc it means nothing."""
