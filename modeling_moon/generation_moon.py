"""Prepare the inputs of each generation step: aspects of new tokens, three-dimensional positions, expanded pictures."""

from __future__ import annotations

from typing import Any

import torch
from transformers import GenerationMixin

from .positions_moon import find_positions, pictures_of_rows, store_offset

_PICTURES = ("pixel_values", "image_grid_thw")


class MoonGenerationMixin(GenerationMixin):
    """Text generation for a class that has a `MoonModel` in `.model`."""

    def prepare_inputs_for_generation(
        self, input_ids: torch.LongTensor, *args: Any, inputs_embeds: torch.Tensor | None = None, **kwargs: Any
    ) -> dict[str, Any]:
        """Prepare the inputs as transformers does, with the aspects of the new tokens, which depend on the markers before them,
        and with the pictures in every step that contains their tokens.

        Raises:
            ValueError: guided experts with `inputs_embeds`, or with only a part of the text (`prefill_chunk_size`, new tokens
                and a cache): the markers of the prompt are then unknown.
        """
        if inputs_embeds is not None and self.config.reads_aspects:
            raise ValueError("guided experts read markers from input_ids: found inputs_embeds; expected input_ids")
        inputs = super().prepare_inputs_for_generation(input_ids, *args, inputs_embeds=inputs_embeds, **kwargs)
        fed = inputs.get("input_ids")
        if self.config.reads_aspects and fed is not None:
            aspect_BT = self.model.find_aspect_ids(input_ids)
            cache, length = inputs.get("past_key_values"), input_ids.shape[1]
            known = fed.shape[1] + (0 if cache is None else cache.get_seq_length())
            if aspect_BT is not None and length < known:
                raise ValueError(
                    f"guided experts read markers from the whole text: found {length} of {known} tokens; expected input_ids "
                    "with the tokens in the cache, and prefill_chunk_size=None"
                )
            # A copy: strides that grow with the text would compile each step again.
            inputs["aspect_ids"] = (
                None
                if aspect_BT is None
                else aspect_BT[:, -fed.shape[1] :].clone(memory_format=torch.contiguous_format)
            )
        if fed is None:
            return inputs
        cache = inputs.get("past_key_values")
        begins = kwargs.get("is_first_iteration") or cache is None or cache.get_seq_length() == 0
        if begins:  # transformers does not count the first draft of an assistant as a first iteration
            inputs |= {name: kwargs[name] for name in _PICTURES if kwargs.get(name) is not None}
            self._store_offset(cache, inputs.get("position_ids"), kwargs.get("attention_mask"), fed)
        elif inputs.get("pixel_values") is None:
            # An image token that was drafted or generated is not a picture.
            inputs["mm_token_type_ids"] = torch.zeros_like(fed)
        if len(fed) == 1 and inputs.get("pixel_values") is not None:  # drafts may follow the prompt
            grid_13, merge_size = inputs["image_grid_thw"], self.config.vision_config.spatial_merge_size
            is_image_1T = fed == self.config.image_token_id
            first_1T = is_image_1T.cumsum(dim=1) <= int(grid_13.prod(dim=-1).sum()) // merge_size**2
            inputs["mm_token_type_ids"] = (is_image_1T & first_1T).long()
        types = inputs.get("mm_token_type_ids")
        if types is not None and types.shape != fed.shape:  # transformers does not extend them by drafts
            del inputs["mm_token_type_ids"]
        return inputs

    @staticmethod
    def _store_offset(
        cache: Any, position_ids: torch.Tensor | None, mask: torch.Tensor | None, fed: torch.Tensor
    ) -> None:
        """Store the offset on a static cache, because transformers replaces its mask with one that hides the padding; on
        other caches the forward pass stores it."""
        if cache is not None and position_ids is not None:
            past = int(cache.get_seq_length())
            store_offset(cache, position_ids[..., -fed.shape[1] :], mask, past, len(fed), has_pictures=True)

    def _prepare_position_ids_for_generation(
        self, inputs_tensor: torch.Tensor, model_kwargs: dict[str, Any]
    ) -> torch.Tensor:
        """Return positions (4, B, past + T): for new tokens the text position, then time, height and width of Qwen's multimodal
        rotary encoding; 0 for tokens in the cache."""
        cache, mask = model_kwargs.get("past_key_values"), model_kwargs.get("attention_mask")
        is_image_BT = self._image_places(inputs_tensor, model_kwargs)
        new_4BT = find_positions(self.model.vlm, is_image_BT, mask, model_kwargs.get("image_grid_thw"), cache).all_4BT
        past = 0 if cache is None else cache.get_seq_length()
        return torch.nn.functional.pad(new_4BT, [past, 0])

    def _image_places(self, inputs_tensor: torch.Tensor | None, model_kwargs: dict[str, Any]) -> torch.Tensor:
        """Return (B, T) bool: which of the new inputs are image tokens."""
        input_ids, embeds = model_kwargs.get("input_ids"), model_kwargs.get("inputs_embeds")
        if input_ids is None or input_ids.shape[1] == 0:
            input_ids = inputs_tensor if inputs_tensor is not None and inputs_tensor.ndim == 2 else None
        if input_ids is not None and input_ids.shape[1]:
            types = model_kwargs.get("mm_token_type_ids")
            is_image_BT = input_ids == self.config.image_token_id
            is_image_BT = types == 1 if types is not None and types.shape == input_ids.shape else is_image_BT
        else:
            embeds = inputs_tensor if embeds is None else embeds
            is_image_BT = self.model.vlm.get_placeholder_mask(None, inputs_embeds=embeds)[0][..., 0]
        cache, mask = model_kwargs.get("past_key_values"), model_kwargs.get("attention_mask")
        past = 0 if cache is None else cache.get_seq_length()
        whole = mask is None or mask.shape[1] == is_image_BT.shape[1]  # else the inputs are the new tokens alone
        return is_image_BT[:, past:] if whole else is_image_BT

    def _expand_inputs_for_generation(
        self,
        expand_size: int = 1,
        is_encoder_decoder: bool = False,
        input_ids: torch.LongTensor | None = None,
        **model_kwargs: Any,
    ) -> tuple[torch.LongTensor, dict[str, Any]]:
        """Expand the inputs as transformers does; repeat images, which are not stored by row, with their row, and positions
        (4, B, T) along their second dimension."""
        images = {name: model_kwargs.pop(name, None) for name in _PICTURES}
        if expand_size > 1 and images["image_grid_thw"] is not None:
            merge_size = self.config.vision_config.spatial_merge_size
            is_image_BT = self._image_places(input_ids, model_kwargs)
            grids = images["image_grid_thw"].split(pictures_of_rows(is_image_BT, images["image_grid_thw"], merge_size))
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
