"""The colors of ordered levels, such as k, and of kinds, such as architectures: the same in the
report's figures and in dashboards."""

ORDERED = ("#3f7fd0", "#1f9e93", "#a58a1c", "#dc6b2f", "#b8438e")
"""From the least to the largest; readable on a light and on a dark page."""
KINDS = ("#3f7fd0", "#dc6b2f", "#1f9e93", "#b8438e", "#a58a1c", "#7a5fc4", "#6f7782", "#c04a4a")
"""Without an order; neighbours are far apart."""
