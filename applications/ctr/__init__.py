"""Predict clicks from product ids, product vectors and the user's earlier clicks."""
