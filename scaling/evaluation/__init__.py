"""What an autoencoder is worth beyond its reconstruction error (Gao et al. 2024, section 4).

Each metric is a module with a `Metric`; registry.py lists them, `python -m scaling.evaluate` runs
them, docs/evaluation.md defines them. Imports nothing by itself.
"""
