"""How the quality metrics of evaluations move with n and k: values, trends, and laws where one
holds (docs/quality.md)."""
