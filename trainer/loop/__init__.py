"""The training loop: stages, losses, checkpoints and guards."""
