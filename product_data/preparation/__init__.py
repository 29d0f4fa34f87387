"""Prepare tables for training: near-duplicate products, splits, and pairs of queries and products."""
