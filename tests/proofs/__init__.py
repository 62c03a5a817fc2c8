"""Proof that recording is right and harmless, in every kind of training loop."""
