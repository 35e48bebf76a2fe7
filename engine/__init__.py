"""The engine: flags, the one training loop, checkpoints, torchrun helpers and the run folder."""
