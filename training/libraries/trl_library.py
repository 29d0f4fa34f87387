"""Give what TRL's GRPOTrainer keeps to itself public names: steps of its work to override, and state to read.

Nothing else in `training/` overrides or reads a private name of TRL. The names and signatures are those of TRL 1.16;
`tests/training/libraries/test_trl_library.py` compares them with the installed version.

Shape suffixes: L rollouts, T tokens of prompt and completion, C tokens of a completion, R rewards.
"""

import contextlib
import functools
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from torch import Tensor, nn
from trl import GRPOTrainer
from trl.trainer.utils import add_fused_lm_head

Rows = list[dict[str, Any]]
Scores = tuple[Tensor, Tensor | None, Tensor | None]
"""Log-probabilities (L, C), entropies (L, C) where asked for, and the routers' loss where asked for."""


class RolloutSteps(GRPOTrainer):
    """GRPOTrainer that makes steps of its work public methods; by default each does what TRL does."""

    def roll_out(self, rows: Rows, generate: Callable[[Rows], dict[str, Any]]) -> dict[str, Any]:
        """Return the tensors of a step's rollouts, rewards and advantages included.

        Args:
            rows: of the data set.
            generate: TRL's way from the rows to the tensors; it calls the steps below.
        """
        return generate(rows)

    def tokenize(self, prompts: list, known: Callable[[list], tuple]) -> tuple[list[list[int]], Any, dict[str, Tensor]]:
        """Return the ids of prompts, their images where vLLM needs them, and their pictures as the model takes them.

        Args:
            prompts: of the data set's rows.
            known: TRL's own way.
        """
        return known(prompts)

    def while_drawing(self) -> AbstractContextManager:
        """Return the context in which completions are drawn."""
        return contextlib.nullcontext()

    def reward_rows(self, rows: Rows, prompts: list, completion_ids: list[list[int]]) -> Rows:
        """Return the rows, one for each rollout, whose columns the reward functions receive.

        Args:
            rows: of the data set, one for each rollout.
            prompts: one for each rollout.
            completion_ids: what was written, without padding.
        """
        return rows

    def score_tokens(
        self,
        score: Callable[..., Scores],
        model: nn.Module,
        ids_LT: Tensor,
        mask_LT: Tensor,
        tokens: int,
        **settings: Any,
    ) -> Scores:
        """Return how likely the last tokens of texts are.

        Args:
            score: TRL's way, which takes what follows.
            model: the policy, or the reference.
            ids_LT: of prompt and completion.
            mask_LT: what is no padding.
            tokens: C, the number of tokens that count.
            **settings: chunk size, what else is wanted, pictures.
        """
        return score(model, ids_LT, mask_LT, tokens, **settings)

    def chunk_loss(self, policy_loss: Callable[[], Tensor], model: nn.Module, inputs: dict[str, Any]) -> Tensor:
        """Return the loss of a chunk of rollouts.

        Args:
            policy_loss: gives TRL's loss.
            model: the policy.
            inputs: the chunk's part of what `roll_out` returned.
        """
        return policy_loss()

    # TRL's own names

    def _generate_and_score_completions(self, inputs: Rows) -> dict[str, Any]:
        return self.roll_out(inputs, super()._generate_and_score_completions)

    def _tokenize_prompts(self, prompts: list) -> tuple[list[list[int]], Any, dict[str, Tensor]]:
        return self.tokenize(prompts, super()._tokenize_prompts)

    def _generate_single_turn(self, *args: Any, **kwargs: Any) -> Any:
        with self.while_drawing():
            return super()._generate_single_turn(*args, **kwargs)

    def _calculate_rewards(
        self, inputs: Rows, prompts: list, completions: list, completion_ids_list: list[list[int]]
    ) -> Tensor:
        """Return the rewards (L, R) of all processes."""
        rows = self.reward_rows(inputs, prompts, completion_ids_list)
        return super()._calculate_rewards(rows, prompts, completions, completion_ids_list)

    def _get_per_token_logps_and_entropies(
        self, model: nn.Module, input_ids: Tensor, attention_mask: Tensor, logits_to_keep: int, **kwargs: Any
    ) -> Scores:
        score = super()._get_per_token_logps_and_entropies
        return self.score_tokens(score, model, input_ids, attention_mask, logits_to_keep, **kwargs)

    def _compute_loss(self, model: nn.Module, inputs: dict[str, Any]) -> Tensor:
        return self.chunk_loss(functools.partial(super()._compute_loss, model, inputs), model, inputs)


def training_metrics(trainer: Any) -> dict[str, list[float]]:
    """Return the values, by name, that the next log of a training step averages; lists are made on first use."""
    return trainer._metrics["train"]


def rollout_logs(trainer: Any) -> dict[str, Any]:
    """Return the last rollouts of all processes as TRL logs them: "rewards" by name, "advantages"."""
    return trainer._logs


def padding_token(trainer: Any) -> int:
    """Return the id of the token with which TRL pads prompts and completions."""
    return trainer._tokenizer.pad_token_id


def chunks_seen(trainer: Any) -> int:
    """Return the number of chunks of rollouts that the trainer has gone through."""
    return trainer._step


def give_fused_output_layer(model: nn.Module, temperature: float) -> None:
    """Let a reference model score tokens with TRL's fused output layer, as TRL does with its own."""
    add_fused_lm_head(model, temperature=temperature)
