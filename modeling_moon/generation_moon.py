"""How text generation feeds a Moon model step by step: aspects of new tokens, three-dimensional positions, repeated pictures."""

from __future__ import annotations

from typing import Any

import torch
from transformers import GenerationMixin


class MoonGenerationMixin(GenerationMixin):
    """transformers' generation for a model that holds a `MoonModel` in `.model`."""

    def prepare_inputs_for_generation(
        self, input_ids: torch.LongTensor, *args: Any, inputs_embeds: torch.Tensor | None = None, **kwargs: Any
    ) -> dict[str, Any]:
        """As the library's, with the aspects of the new tokens, which depend on the markers before them.

        Raises:
            ValueError: guided experts and `inputs_embeds`, or a part of the text alone (`prefill_chunk_size`, new tokens beside a
                cache): the markers of the prompt are not known then.
        """
        if inputs_embeds is not None and self.config.reads_aspects:
            raise ValueError("guided experts read markers from input_ids: generate from input_ids, not inputs_embeds")
        inputs = super().prepare_inputs_for_generation(input_ids, *args, inputs_embeds=inputs_embeds, **kwargs)
        fed = inputs.get("input_ids")
        if self.config.reads_aspects and fed is not None:
            aspect_BT = self.model._aspect_ids(input_ids)
            cache, length = inputs.get("past_key_values"), input_ids.shape[1]
            known = fed.shape[1] + (0 if cache is None else cache.get_seq_length())
            if aspect_BT is not None and length < known:
                raise ValueError(
                    f"guided experts read markers from the whole text: found {length} of {known} tokens; accepted: input_ids "
                    "with the tokens in the cache, and prefill_chunk_size=None"
                )
            # Of its own memory: strides that grow with the text would have each step compiled again.
            inputs["aspect_ids"] = (
                None
                if aspect_BT is None
                else aspect_BT[:, -fed.shape[1] :].clone(memory_format=torch.contiguous_format)
            )
        return inputs

    def _prepare_position_ids_for_generation(
        self, inputs_tensor: torch.Tensor, model_kwargs: dict[str, Any]
    ) -> torch.Tensor:
        """Positions (4, B, T): the text position, then time, height and width as Qwen's multimodal rotary encoding."""
        text_BT = super()._prepare_position_ids_for_generation(inputs_tensor, model_kwargs)
        vlm = self.model.vlm
        input_ids = model_kwargs.get("input_ids")
        if input_ids is None or input_ids.shape[1] == 0:
            input_ids = inputs_tensor
        cache = model_kwargs.get("past_key_values")
        past = 0 if cache is None else cache.get_seq_length()
        new_images = input_ids.ndim == 2 and bool((input_ids[:, past:] == self.config.image_token_id).any())
        if past > 0 and vlm.rope_deltas is not None and not new_images:
            return text_BT[None] + vlm.rope_deltas
        grid = model_kwargs.get("image_grid_thw")
        if grid is None or input_ids.ndim != 2:
            vlm.rope_deltas = torch.zeros(input_ids.shape[0], 1, dtype=torch.long, device=input_ids.device)
            return torch.cat([text_BT[None], text_BT[None].expand(3, -1, -1)])
        token_types = model_kwargs.get("mm_token_type_ids")
        if token_types is None:
            token_types = (input_ids == self.config.image_token_id).long()
        vision_3BT, vlm.rope_deltas = vlm.get_rope_index(
            input_ids, token_types, image_grid_thw=grid, attention_mask=model_kwargs.get("attention_mask")
        )
        return torch.cat([text_BT[None], vision_3BT])

    def _expand_inputs_for_generation(
        self,
        expand_size: int = 1,
        is_encoder_decoder: bool = False,
        input_ids: torch.LongTensor | None = None,
        **model_kwargs: Any,
    ) -> tuple[torch.LongTensor, dict[str, Any]]:
        """As the library's; images, which are not stored by row, are repeated with the row they belong to, and positions
        (4, B, T) along their second dimension."""
        images = {name: model_kwargs.pop(name, None) for name in ("pixel_values", "image_grid_thw")}
        if expand_size > 1 and images["image_grid_thw"] is not None:
            vlm_config = self.config.vlm_config
            starts_BT = (input_ids[:, :-1] == vlm_config.vision_start_token_id) & (
                input_ids[:, 1:] == vlm_config.image_token_id
            )
            grids = images["image_grid_thw"].split(starts_BT.sum(dim=1).tolist())
            patches = images["pixel_values"].split([int(grid.prod(dim=-1).sum()) for grid in grids])
            images["image_grid_thw"] = torch.cat([grid for grid in grids for _ in range(expand_size)])
            images["pixel_values"] = torch.cat([patch for patch in patches for _ in range(expand_size)])
        positions_4BT = model_kwargs.pop("position_ids", None)
        input_ids, model_kwargs = super()._expand_inputs_for_generation(
            expand_size, is_encoder_decoder, input_ids, **model_kwargs
        )
        if positions_4BT is not None:
            rows = 1 if positions_4BT.ndim == 3 else 0
            model_kwargs["position_ids"] = positions_4BT.repeat_interleave(expand_size, dim=rows)
        return input_ids, model_kwargs | {name: value for name, value in images.items() if value is not None}
