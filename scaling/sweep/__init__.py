"""From validated points to finished runs: planning, estimating, packing on workers."""
