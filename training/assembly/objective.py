"""Create the objective of a recipe, and check that it matches the model."""

import fnmatch
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from product_data.tables import ProductTables
from retrieval.encode import load_for_evaluation
from training.batches.called_teacher import CalledTeacher, Encoder, sample_of
from training.batches.teacher_vectors import TeacherVectors
from training.contrastive.distiller import Teacher
from training.encoding.earlier_model import EarlierModel
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
        arguments.compatible_weight,
    )


def filter_of(arguments: LossArguments) -> SampleFilter | None:
    """Return the sample filter of a recipe; None if all triplets have the same weight."""
    return SampleFilter(arguments.filter_threshold) if arguments.sample_filter else None


def earlier_of(arguments: LossArguments, learner: nn.Module, device: torch.device) -> EarlierModel | None:
    """Return the earlier model of `compatible_with`, frozen; None if the recipe has none.

    Args:
        arguments: the recipe's keys of the loss.
        learner: the model to train.
        device: the device on which it trains.

    Raises:
        RecipeError: the checkpoint cannot be loaded, or its vectors have another width.
    """
    place = arguments.compatible_with
    if place is None:
        return None
    try:
        model, processor = load_for_evaluation(place, device=str(device))
    except (ValueError, OSError, ImportError) as error:
        raise RecipeError(f"compatible_with: {error}") from error
    found, expected = model.config.vector_size, learner.config.vector_size
    if found != expected:
        raise RecipeError(
            f"compatible_with: found vectors of width {found} in {place}; expected {expected}, the width of the new model "
            "(moon.embedding_dim)"
        )
    return EarlierModel(model, processor)


def teachers_of(arguments: LossArguments, tables: Sequence[ProductTables] = ()) -> list[Teacher]:
    """Return the teachers of a recipe, with their vectors in memory, or with their encoders.

    Args:
        arguments: the recipe's keys of the loss.
        tables: the training split of each data set, from which an encoder's mean vector is computed.

    Raises:
        RecipeError: a folder that `moon3 embed` did not write or finish, or that lacks the form, see `TeacherVectors`; an
            encoder that cannot be loaded, or data without its form, see `CalledTeacher`.
    """
    teachers = []
    for number, entry in enumerate(arguments.teachers):
        folders, form = entry.get("vectors", []), entry["form"]
        try:
            if "encoder" in entry:
                vectors: Any = CalledTeacher(Encoder(entry["encoder"], form), form, _sample(tables))
            else:
                vectors = TeacherVectors(folders if isinstance(folders, list) else [folders], form)
        except (ValueError, OSError) as error:
            raise RecipeError(f"teachers[{number}]: {error}") from error
        teachers.append(Teacher(vectors, entry.get("kind", "direct"), entry.get("weight", 1.0)))
    return teachers


def _sample(tables: Sequence[ProductTables]) -> list[Any]:
    return sample_of([row.record() for table in tables for row in (*table.products, *table.queries)])


def check_objective(arguments: LossArguments, model: ModelArguments, learner: nn.Module) -> None:
    """Raise RecipeError for a loss or learning rates that do not match the model.

    Args:
        arguments: the recipe's keys of the loss.
        model: the recipe's keys of the model, for its learning rates.
        learner: the model to train, with its adapters.

    Raises:
        RecipeError: learning rates do not match trainable parameters, a width exceeds that of the vectors, the model
            has no experts for the load-balancing loss or no trainable preferences for their entropy, or the objectives
            of the model lack one of the three forms.
    """
    learning = [name for name, parameter in learner.named_parameters() if parameter.requires_grad]
    for pattern in model.learning_rates or {}:
        if not fnmatch.filter(learning, pattern):
            raise RecipeError(
                f"learning_rates: found no trainable parameter like {pattern!r}; expected a pattern such as '*visual*'"
            )
    config = learner.config
    widest = max(arguments.matryoshka_dims, default=0)
    if widest > config.vector_size:
        raise RecipeError(
            f"matryoshka_dims: found {widest}; expected at most {config.vector_size}, the width of the vectors"
        )
    if arguments.teachers and not hasattr(config, "expert_routing"):
        raise RecipeError(f"teachers: found model type {config.model_type!r}; expected architecture: moon")
    if arguments.router_loss_weight and not getattr(config, "mixture_layers", ()):
        raise RecipeError(
            "router_loss_weight: found a model without experts; expected expert_routing guided or modality, or 0"
        )
    routing = getattr(config, "expert_routing", None)
    preferences = [value for name, value in learner.named_parameters() if name.endswith(".preference")]
    if arguments.sparsity_weight and (routing != "modality" or not any(value.requires_grad for value in preferences)):
        found = (
            f"expert_routing {routing!r}"
            if routing != "modality"
            else "preferences that are frozen (by lora or freeze)"
        )
        raise RecipeError(f"sparsity_weight: found {found}; expected trainable modality-driven experts (moon2), or 0")
    from_model = arguments.dual_alignment and arguments.alignment_weights is None and routing == "modality"
    if from_model and not set(FORMS) <= set(config.objectives):
        raise RecipeError(
            f"dual_alignment: found objectives {config.objectives} in the model; expected {', '.join(FORMS)} among them, "
            "or alignment_weights"
        )
