"""The training steps that the step-cost benchmark compares, one module per package.

A worker process runs one of them in the package's own virtual environment, so the modules here
import only torch, the standard library, this folder and the one package that they stand for.
"""
