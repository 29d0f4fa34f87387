"""Save a Moon model with the locations of its code, and refuse weights that could not be loaded again."""

from __future__ import annotations

from typing import Any

from .configuration_moon import AUTO_MAP


def weights_under_adapters(model: Any) -> list[str]:
    """Return the names of the parameters that an adapter (peft) wraps and therefore renames."""
    names = (name for name, _ in model.named_parameters())
    return [name for name in names if ".base_layer." in name or ".original_module." in name]


class MoonSaving:
    """`save_pretrained` of every Moon model."""

    def save_pretrained(self, save_directory: Any, **kwargs: Any) -> None:
        """Save as transformers does, with all of Moon's classes in `auto_map`, whichever class is saved.

        An adapter that this model's `add_adapter` has added is written alone, as in transformers.

        Raises:
            ValueError: adapters that this model's `add_adapter` has not added: the weights under them would be written under
                other names, and would be random after loading.
        """
        model: Any = self
        wrapped = weights_under_adapters(model)
        if wrapped and not model._hf_peft_config_loaded and kwargs.get("state_dict") is None:
            raise ValueError(
                f"adapters wrap {len(wrapped)} weights of this {type(model).__name__}, among them {wrapped[0]}, which would be "
                "random after loading; expected save_pretrained of the PeftModel (the adapter alone) or of the "
                "SentenceTransformer, the model that merge_and_unload() returns, or a model with its own add_adapter"
            )
        model.config.auto_map = dict(AUTO_MAP)
        super().save_pretrained(save_directory, **kwargs)  # type: ignore[misc]
