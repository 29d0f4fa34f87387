"""How a Moon model is saved: with the places of its code, and never with weights under names that nothing can read."""

from __future__ import annotations

from typing import Any

from .configuration_moon import AUTO_MAP


def weights_under_adapters(model: Any) -> list[str]:
    """Return the names of the parameters that an adapter (peft) has wrapped, and so renamed."""
    names = (name for name, _ in model.named_parameters())
    return [name for name in names if ".base_layer." in name or ".original_module." in name]


class MoonSaving:
    """`save_pretrained` of every Moon model."""

    def save_pretrained(self, save_directory: Any, **kwargs: Any) -> None:
        """As the library's, with all of Moon's classes named in `auto_map`, whichever class is saved.

        An adapter of `add_adapter` is written by itself, as the library does.

        Raises:
            ValueError: adapters in the layers that `add_adapter` of this very model does not account for: the weights under
                them would be written under other names, and come back random.
        """
        model: Any = self
        wrapped = weights_under_adapters(model)
        if wrapped and not model._hf_peft_config_loaded and kwargs.get("state_dict") is None:
            raise ValueError(
                f"adapters wrap {len(wrapped)} weights of this {type(model).__name__}, among them {wrapped[0]}, which would come "
                "back random; expected save_pretrained of the PeftModel (the adapter alone) or of the SentenceTransformer; the "
                "model that merge_and_unload() gives; a model whose own add_adapter put the adapter in"
            )
        model.config.auto_map = dict(AUTO_MAP)
        super().save_pretrained(save_directory, **kwargs)  # type: ignore[misc]
