"""The tiny subject models of the harvest's tests, for metrics."""

from tests.unit.activations.conftest import (
    gpt2_folder,
    harvest_config,
    llama_folder,
    text_folder,
)

__all__ = ["gpt2_folder", "harvest_config", "llama_folder", "text_folder"]
