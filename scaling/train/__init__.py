"""Training: the loop reads as prose, an engine does the arithmetic behind a protocol."""
