"""Detect the core product of the pictures of tables, and write the boxes into the tables."""
