"""Sweeps that ask what one key does: found in the runs' plans, compared level by level."""
