"""Relate the quality of vectors during training to what they bring to click prediction."""
