"""Give private names of TRL's GRPOTrainer public ones: methods to override, and state to read.

No other file in `training/` overrides or reads a private name of TRL. TRL 1.16 uses these names and signatures;
`tests/training/libraries/test_trl_library.py` checks them against the installed version.

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
"""Log-probabilities (L, C), and if requested entropies (L, C) and the routers' loss."""


class RolloutSteps(GRPOTrainer):
    """GRPOTrainer that turns its private methods into public ones. By default, each method does what TRL does."""

    def roll_out(self, rows: Rows, generate: Callable[[Rows], dict[str, Any]]) -> dict[str, Any]:
        """Return the tensors of a step's rollouts, with rewards and advantages.

        Args:
            rows: rows of the data set.
            generate: TRL's method, which computes the tensors with the methods below.
        """
        return generate(rows)

    def tokenize(
        self, prompts: list, tokenize: Callable[[list], tuple]
    ) -> tuple[list[list[int]], Any, dict[str, Tensor]]:
        """Return the token ids of prompts, their images if vLLM needs them, and their pictures as model inputs.

        Args:
            prompts: the prompts of rows of the data set.
            tokenize: TRL's method.
        """
        return tokenize(prompts)

    def generation_context(self) -> AbstractContextManager:
        """Return the context in which completions are generated."""
        return contextlib.nullcontext()

    def reward_rows(self, rows: Rows, prompts: list, completion_ids: list[list[int]]) -> Rows:
        """Return the rows whose columns are passed to the reward functions, a row for each rollout.

        Args:
            rows: rows of the data set, one for each rollout.
            prompts: a prompt for each rollout.
            completion_ids: the token ids of each completion, without padding.
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
        """Return the log-probabilities of the last tokens of texts.

        Args:
            score: TRL's method, which takes the following arguments.
            model: the policy or the reference model.
            ids_LT: token ids of prompt and completion.
            mask_LT: 1 for tokens, 0 for padding.
            tokens: C, the number of last tokens to score.
            **settings: chunk size, pictures, and whether to compute entropies and the routers' loss.
        """
        return score(model, ids_LT, mask_LT, tokens, **settings)

    def chunk_loss(self, policy_loss: Callable[[], Tensor], model: nn.Module, inputs: dict[str, Any]) -> Tensor:
        """Return the loss of a chunk of rollouts.

        Args:
            policy_loss: computes TRL's loss.
            model: the policy.
            inputs: the rows of the chunk in the tensors of `roll_out`.
        """
        return policy_loss()

    # The private methods of TRL

    def _generate_and_score_completions(self, inputs: Rows) -> dict[str, Any]:
        return self.roll_out(inputs, super()._generate_and_score_completions)

    def _tokenize_prompts(self, prompts: list) -> tuple[list[list[int]], Any, dict[str, Tensor]]:
        return self.tokenize(prompts, super()._tokenize_prompts)

    def _generate_single_turn(self, *args: Any, **kwargs: Any) -> Any:
        with self.generation_context():
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
    """Return the lists of values, by name, that the next log averages; a new name starts an empty list."""
    return trainer._metrics["train"]


def rollout_logs(trainer: Any) -> dict[str, Any]:
    """Return the last rollouts of all processes as TRL logs them: "rewards" by name, and "advantages"."""
    return trainer._logs


def padding_token(trainer: Any) -> int:
    """Return the id of the token with which TRL pads prompts and completions."""
    return trainer._tokenizer.pad_token_id


def chunks_seen(trainer: Any) -> int:
    """Return the number of chunks of rollouts that the trainer has processed."""
    return trainer._step


def give_fused_output_layer(model: nn.Module, temperature: float) -> None:
    """Add TRL's fused output layer to a reference model, as TRL does for its own."""
    add_fused_lm_head(model, temperature=temperature)
