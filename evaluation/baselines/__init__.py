"""Models that Moon is compared with. Importing this package lets `load_for_evaluation` load them."""

from evaluation.baselines import dual_tower as dual_tower
