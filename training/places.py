"""Paths of the project's files: recipes, launch files and the training script."""

from pathlib import Path

PROJECT = Path(__file__).resolve().parents[1]
RECIPES = PROJECT / "training" / "recipes"
LAUNCH = PROJECT / "training" / "launch"
TRAIN = PROJECT / "training" / "train.py"
