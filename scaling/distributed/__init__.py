"""Runs of many processes: the mesh, the exact selection over shards, DeepSpeed, ranks and faults.

The only part that imports torch.distributed and deepspeed.
"""
