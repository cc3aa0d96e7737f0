"""The colors of ordered levels, such as k: the same in the report's figures and in dashboards."""

ORDERED = ("#3f7fd0", "#1f9e93", "#a58a1c", "#dc6b2f", "#b8438e")
"""From the least to the largest; readable on a light and on a dark page."""
