"""Autoencoders in and out: this package's own files and those of other libraries.

Each format is a module with `read(path)` and `write(...)`; between them stands `portable.Portable`.
Imports nothing by itself, so that the command line starts quickly.
"""
