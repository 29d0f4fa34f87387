"""Prompts of InternVL (arXiv 2504.10479): a picture is cut into tiles, and each tile becomes a fixed number of image tokens.

InternVL's processor in transformers asks for a video processor and thereby for torchvision; this one needs the tokenizer and the
image processor alone and makes the same input.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers import AutoTokenizer, GotOcr2ImageProcessorPil

from evaluation.baselines.peers import PeerProcessor, PeerRow
from processing_moon import PromptProcessor, Shortened
from retrieval.model_kinds import CheckpointError

MAX_TOKENS = 8192
_TEXT_SLOT = "\ue000text\ue001"


class TiledPromptProcessor(PeerProcessor):
    """Product and query records as prompts of InternVL.

    Args:
        kind: the kind of model.
        tokenizer: has a chat template and the tokens `start_image_token`, `end_image_token` and `context_image_token`.
        image_processor: `GotOcr2ImageProcessorPil`.
        tokens_per_tile (`int`): image tokens of a tile.
    """

    max_tokens = MAX_TOKENS

    def __init__(self, kind: str, tokenizer: Any, image_processor: Any, tokens_per_tile: int) -> None:
        super().__init__(kind, [token.content for token in tokenizer.added_tokens_decoder.values()])
        self.tokenizer, self.image_processor, self.tokens_per_tile = tokenizer, image_processor, tokens_per_tile

    @classmethod
    def from_pretrained(cls, kind: str, place: str, config: Any) -> TiledPromptProcessor:
        """Load tokenizer and image processor of a checkpoint.

        Args:
            kind: the kind of model.
            place: folder or hub id.
            config: the `InternVLConfig`.

        Raises:
            CheckpointError: a tokenizer without InternVL's image tokens or without a chat template.
        """
        tokenizer = AutoTokenizer.from_pretrained(place)
        if tokenizer.chat_template is None:  # some repositories have it with the processor only
            tokenizer.chat_template = PromptProcessor.get_processor_dict(place)[0].get("chat_template")
        if tokenizer.chat_template is None or getattr(tokenizer, "context_image_token", None) is None:
            raise CheckpointError(
                f"{kind}={place}: the tokenizer lacks a chat template or the token context_image_token; expected InternVL's in "
                'the form of transformers, such as "OpenGVLab/InternVL3-1B-hf"'
            )
        return cls(kind, tokenizer, GotOcr2ImageProcessorPil.from_pretrained(place), config.image_seq_length)

    @property
    def markers(self) -> list[int]:
        """Ids of the tokens around pictures."""
        return [self.tokenizer.start_image_token_id, self.tokenizer.end_image_token_id]

    @property
    def user_turn(self) -> tuple[list[int], int]:
        """Ids that open the user's turn, and the id that ends a turn; see `modeling_moon.tokens_moon.user_tokens`."""
        before, _, after = self._prompt(0, True).partition(_TEXT_SLOT)
        opening, closing = self.tokenizer([before, after], add_special_tokens=False)["input_ids"]
        controls = [place for place, token in enumerate(opening) if token in self.tokenizer.added_tokens_decoder]
        return opening[controls[-1] :], closing[0]

    def tensors(self, rows: Sequence[PeerRow], shortened: list[Shortened]) -> Mapping[str, Any]:
        """Return input_ids, attention_mask (B, T) int64, and pixel_values (tiles, 3, side, side) where there are pictures."""
        pictures = [picture for row in rows for picture in row.pictures]
        found: dict[str, Any] = {}
        tiles: list[int] = []
        if pictures:
            made = self.image_processor(images=pictures, crop_to_patches=True, return_tensors="pt")
            found["pixel_values"], tiles = made["pixel_values"], [int(count) for count in made["num_patches"]]
        left = iter(tiles)
        ids = []
        for row in rows:
            prompt = self._with_tiles(
                self._prompt(len(row.pictures), bool(row.text)), [next(left) for _ in row.pictures]
            )
            ids.append(self._ids(row, prompt, shortened))
        longest = max(map(len, ids))
        pad = self.tokenizer.pad_token_id
        found["input_ids"] = torch.tensor([[pad] * (longest - len(one)) + one for one in ids])
        found["attention_mask"] = torch.tensor([[0] * (longest - len(one)) + [1] * len(one) for one in ids])
        return found

    def _prompt(self, pictures: int, has_text: bool) -> str:
        content: list[dict[str, str]] = [{"type": "image"}] * pictures
        content += [{"type": "text", "text": _TEXT_SLOT}] if has_text else []
        return self.tokenizer.apply_chat_template(
            [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
        )

    def _with_tiles(self, prompt: str, tiles: Sequence[int]) -> str:
        """Put the image tokens of each picture in the place of its one token."""
        tokenizer = self.tokenizer
        parts = prompt.split(tokenizer.context_image_token)
        if len(parts) != len(tiles) + 1:
            raise CheckpointError(f"the chat template has {len(parts) - 1} image tokens for {len(tiles)} pictures")
        blocks = [
            f"{tokenizer.start_image_token}{tokenizer.context_image_token * (self.tokens_per_tile * count)}"
            f"{tokenizer.end_image_token}"
            for count in tiles
        ]
        return "".join(part + block for part, block in zip(parts, [*blocks, ""], strict=True))

    def _ids(self, row: PeerRow, prompt: str, shortened: list[Shortened]) -> list[int]:
        """The ids of a prompt with its text, cut at its end where the whole is over `max_tokens`."""

        def encode(text: str) -> list[int]:
            return self.tokenizer(prompt.replace(_TEXT_SLOT, text), add_special_tokens=False, verbose=False)[
                "input_ids"
            ]

        text, ids = row.text, encode(row.text)
        before = len(ids)
        while len(ids) > self.max_tokens and text:
            offsets = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
            keep = max(0, len(offsets) - (len(ids) - self.max_tokens))
            text = text[: offsets[keep][0]].rstrip()
            ids = encode(text)
        if len(ids) < before:
            shortened.append(Shortened(row.index, "text", before, len(ids)))
        return ids
