"""Against a W&B server that runs on this machine: nothing leaves it."""
