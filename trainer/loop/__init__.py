"""The training loop: stages, losses, checkpoints and what stops a run."""
