"""Fit how a loss falls with training tokens, negatives and the length of behaviour."""
