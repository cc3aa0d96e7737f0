"""Runs compared at equal L0: their curves of loss against sparsity, read at one L0."""
