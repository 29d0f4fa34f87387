"""The objective of a recipe's loss, and whether it fits the model."""

import fnmatch

from torch import nn

from training.errors import RecipeError
from training.losses.dual_alignment import FORMS, DualAlignmentLoss
from training.losses.info_nce import InfoNCELoss
from training.losses.matryoshka import MatryoshkaLoss
from training.losses.sample_filter import SampleFilter
from training.recipe.loss import LossArguments
from training.recipe.model import ModelArguments


def loss_of(arguments: LossArguments) -> DualAlignmentLoss:
    """Return the objective that a recipe describes."""
    contrastive: nn.Module = InfoNCELoss(arguments.temperature, arguments.loss_block_size)
    if arguments.matryoshka_dims:
        contrastive = MatryoshkaLoss(contrastive, arguments.matryoshka_dims)
    return DualAlignmentLoss(
        contrastive,
        arguments.alignment_weights,
        arguments.intra_weight,
        arguments.symmetric_intra,
        arguments.router_loss_weight,
        arguments.sparsity_weight,
    )


def filter_of(arguments: LossArguments) -> SampleFilter | None:
    """Return what weighs the triplets of a recipe, None where all count alike."""
    return SampleFilter(arguments.filter_threshold) if arguments.sample_filter else None


def check_fits(arguments: LossArguments, model: ModelArguments, learner: nn.Module) -> None:
    """Refuse a loss, or learning rates, that ask for what the model does not have.

    Args:
        arguments: the recipe's loss.
        model: the recipe's model, for its learning rates.
        learner: the model that will be trained, with adapters where there are some.

    Raises:
        RecipeError: learning rates of parameters that do not learn; widths above that of the vectors; the load-balancing
            loss without experts; the entropy of preferences that the model has not, or that do not learn; objectives of
            the model that are not the three forms.
    """
    learning = [name for name, parameter in learner.named_parameters() if parameter.requires_grad]
    for pattern in model.learning_rates or {}:
        if not fnmatch.filter(learning, pattern):
            raise RecipeError(
                f"learning_rates: found no learning parameter like {pattern!r}; expected a pattern such as '*visual*'"
            )
    config = learner.config
    widest = max(arguments.matryoshka_dims, default=0)
    if widest > config.vector_size:
        raise RecipeError(
            f"matryoshka_dims: found {widest} for vectors of width {config.vector_size}; expected up to that"
        )
    if arguments.router_loss_weight and not getattr(config, "mixture_layers", ()):
        raise RecipeError(
            "router_loss_weight: found a model without experts; expected expert_routing guided or modality, or 0"
        )
    routing = getattr(config, "expert_routing", None)
    preferences = [one for name, one in learner.named_parameters() if name.endswith(".preference")]
    if arguments.sparsity_weight and (routing != "modality" or not any(one.requires_grad for one in preferences)):
        found = (
            f"expert_routing {routing!r}" if routing != "modality" else "preferences that do not learn (lora, freeze)"
        )
        raise RecipeError(f"sparsity_weight: found {found}; expected learning modality-driven experts (moon2), or 0")
    from_model = arguments.dual_alignment and arguments.alignment_weights is None and routing == "modality"
    if from_model and not set(FORMS) <= set(config.objectives):
        raise RecipeError(
            f"dual_alignment: found objectives {config.objectives} in the model; expected {', '.join(FORMS)} among them, "
            "or alignment_weights"
        )
