"""Pull a student's states towards the vectors of its teachers, in a training by one or several processes.

Shape suffixes: R rows that a teacher knows, C rows of all processes, S student width, E teacher width.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from training.batches.called_teacher import CalledTeacher
from training.batches.teacher_vectors import TeacherVectors
from training.encoding.chunked_encoding import Vectors
from training.encoding.earlier_model import EarlierModel
from training.encoding.student_states import state_name
from training.losses.distillation import RELATION_TEMPERATURE, direct_loss, relation_loss
from training.parallel.distributed import first_row, gather_all_with_gradient, mean_rows, world_size

DIRECT, RELATIONS = "direct", "relations"
_SEED = 0
_PRODUCTS = {"products": ""}
_BOTH = _PRODUCTS | {"queries": "query_"}


@dataclass(frozen=True)
class Teacher:
    """A teacher of a training.

    Args:
        vectors: its vectors of the products, or what embeds the queries and products of each batch.
        kind: "direct" or "relations".
        weight: the weight of its term, above 0.
    """

    vectors: TeacherVectors | CalledTeacher
    kind: str
    weight: float


class Distiller(nn.Module):
    """The terms of all teachers, and the learned maps of those that pull directly: `L_teachers = Σ_k w_k L_k / R_k`.

    A term is a mean over the R_k products of all processes that teacher k knows; for a `CalledTeacher`, over the queries and
    products that have its form. The maps are trained with the model and saved in
    its checkpoints' state, but are no part of the model. They start from a generator of their own, alike in all processes.

    Args:
        teachers: the teachers.
        widths: S, the width of the student's states, for each teacher.

    Relations:
        `training.losses.distillation` has the kernels; the batch's "teachers" are from `TeacherVectors.of` or `CalledTeacher.of`.
    """

    def __init__(self, teachers: Sequence[Teacher], widths: Sequence[int]) -> None:
        super().__init__()
        self.teachers = list(teachers)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(_SEED)
            maps = [
                nn.Linear(width, teacher.vectors.width) if teacher.kind == DIRECT else nn.Identity()
                for teacher, width in zip(teachers, widths, strict=True)
            ]
        self.maps = nn.ModuleList(maps)

    @property
    def states(self) -> set[str]:
        """Return the names of the student's states that the teachers pull."""
        return {state_name(side, teacher.vectors.form) for teacher in self.teachers for side in _sides(teacher)}

    def forward(self, vectors: Vectors, taught: Sequence[Mapping[str, Tensor]]) -> Tensor:
        """Return the weighted sum of the terms, of which the mean over all processes is the term of the global batch.

        Args:
            vectors: of the batch encoder, with the student's states.
            taught: the batch's "teachers", one for each.
        """
        terms = []
        for number, (teacher, one) in enumerate(zip(self.teachers, taught, strict=True)):
            names = [(state_name(side, teacher.vectors.form), prefix) for side, prefix in _sides(teacher).items()]
            state_RS = torch.cat([vectors[name][one[f"{prefix}rows"]].float() for name, prefix in names])
            teacher_RE = torch.cat([one[f"{prefix}vectors"] for _, prefix in names])
            terms.append(teacher.weight * self._term(number, state_RS, teacher_RE))
        return torch.stack(terms).sum()

    def _term(self, number: int, state_RS: Tensor, teacher_RE: Tensor) -> Tensor:
        count = max(mean_rows(len(state_RS), state_RS.device), 1e-9)
        if self.teachers[number].kind == DIRECT:
            return direct_loss(self.maps[number](state_RS), teacher_RE) / count
        first = first_row(len(state_RS), state_RS.device)
        state_CS, teacher_CE = gather_all_with_gradient([state_RS, teacher_RE])
        own_R = first + torch.arange(len(state_RS), device=state_RS.device)
        loss = relation_loss(state_RS, state_CS, teacher_RE, teacher_CE.detach(), own_R, RELATION_TEMPERATURE)
        return loss / count

    def average_gradients(self) -> None:
        """Average the gradients of the maps over all processes, as DDP does for the model."""
        if world_size() == 1:
            return
        for parameter in self.parameters():
            parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            dist.all_reduce(parameter.grad)
            parameter.grad /= world_size()


def _sides(teacher: Teacher) -> dict[str, str]:
    """Return the sides that a teacher reads, and what the names of their tensors begin with in the batch."""
    return _BOTH if isinstance(teacher.vectors, CalledTeacher) else _PRODUCTS


@dataclass(frozen=True)
class FrozenModels:
    """What a contrastive training reads and does not train.

    Args:
        earlier: the model whose product vectors the queries must be able to search. Default: none.
        teachers: the teachers whose vectors pull the model's states. Default: none.
    """

    earlier: EarlierModel | None = None
    teachers: Sequence[Teacher] = ()

    def distiller(self, learner: nn.Module) -> Distiller | None:
        """Return the teachers' terms for a model; None without teachers."""
        if not self.teachers:
            return None
        config: Any = learner.config
        widths = [config.vector_size if one.vectors.form == "mm" else config.hidden_size for one in self.teachers]
        return Distiller(self.teachers, widths)

    def reading(self) -> dict[str, Any]:
        """Return the arguments with which a collator prepares the products for them."""
        processor = None if self.earlier is None else self.earlier.processor
        return {"earlier": processor, "teachers": [teacher.vectors for teacher in self.teachers]}
