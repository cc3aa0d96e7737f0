"""W&B workspaces as code: what to look at while a sweep runs, remade by one command."""
