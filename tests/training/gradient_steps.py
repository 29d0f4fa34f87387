"""What each step of a training is made of, for tests that compare one training with another."""

import torch
from transformers import TrainerCallback


class Gradients(TrainerCallback):
    """Keeps the gradient of each step by parameter name; zeros where a learning parameter has none."""

    def __init__(self):
        self.steps = []

    def on_pre_optimizer_step(self, args, state, control, model=None, **_):
        model = getattr(model, "module", model)
        learning = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
        none = {name: torch.zeros_like(parameter) for name, parameter in learning.items()}
        self.steps.append(none | {name: one.grad.clone() for name, one in learning.items() if one.grad is not None})
