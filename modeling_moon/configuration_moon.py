"""MoonConfig: what makes a Moon out of a vision-language base. No torch here."""

from __future__ import annotations

import copy
import difflib
from dataclasses import fields
from typing import Any, ClassVar

from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig

BACKBONES = ("qwen3_vl", "qwen2_5_vl")
EXPERT_ROUTINGS = ("none", "guided")
READOUTS = ("mean", "emb", "last")
# The two aspects that have an expert of their own under guided routing (MOON §3), in the order of those experts.
ASPECTS = ("category", "attribute")
# Arguments that transformers itself passes to a configuration or stores in config.json.
_LIBRARY_ARGUMENTS = frozenset(
    {
        "_attn_implementation",
        "_commit_hash",
        "_experts_implementation",
        "_name_or_path",
        "attn_implementation",
        "auto_map",
        "experts_implementation",
        "model_type",
        "name_or_path",
        "num_labels",
        "output_attentions",
        "per_layer_config",
        "quantization_config",
        "torch_dtype",
        "transformers_weights",
    }
)


class MoonConfig(PreTrainedConfig):
    r"""Configuration of a Moon model: the base's own configuration and the parts that Moon adds to it.

    Args:
        vlm_config (`PreTrainedConfig` or `dict`): configuration of the vision-language base, of model type `qwen3_vl` or
            `qwen2_5_vl`. It is copied, never shared. Default: Qwen3-VL's.
        expert_routing (`str`): "guided" turns the feed-forward layers of `moe_layers` into guided mixtures of experts
            (MOON §3); "none" leaves the base's dense layers. Default "guided".
        num_experts (`int`): N, all experts of a layer; the last two are the category and the attribute expert. Default 4.
        num_experts_per_token (`int`): k, how many of the N - 2 free experts a token uses. With k = 1 the renormalised
            weight of a token outside the spans is the constant 1 and its router gets no gradient, so that at least 2 is
            asked for where there are 2 free experts (our design). Default 2.
        moe_layers (`list[int]` or `None`): decoder layers that become mixtures; `None` is every layer, as in the paper.
        readout (`str`): what the vector is read from: "mean" of the last hidden states (MOON §3), the state of the
            "emb" token, or the "last" attended token (bases that are embedders already). Default "mean".
        embedding_dim (`int` or `None`): size of the vector, at most the base's width. `None` keeps the base's width
            without a projection. Default 256.
        category_start_token_id, category_end_token_id, attribute_start_token_id, attribute_end_token_id (`int` or
            `None`): ids of the marker tokens around the category and the attributes; `None` where the vocabulary has
            no such marker, and then no token is routed to that aspect's expert.
        emb_token_id (`int` or `None`): id of the `<emb>` token, required by readout "emb".
        initializer_range (`float`): standard deviation of freshly made router and expert weights. Default 0.02.

    Raises:
        ValueError: an unknown argument (with the nearest known one), another backbone, a value out of range.

    Relations: `MoonConfig.moon1(...)` is the preset of MOON (arXiv 2508.11999).
    """

    model_type = "moon"
    sub_configs: ClassVar = {"vlm_config": AutoConfig}
    has_no_defaults_at_init = False

    vlm_config: Any = None
    expert_routing: str = "guided"
    num_experts: int = 4
    num_experts_per_token: int = 2
    moe_layers: list[int] | None = None
    readout: str = "mean"
    embedding_dim: int | None = 256
    category_start_token_id: int | None = None
    category_end_token_id: int | None = None
    attribute_start_token_id: int | None = None
    attribute_end_token_id: int | None = None
    emb_token_id: int | None = None
    initializer_range: float = 0.02

    def __post_init__(self, **kwargs: Any) -> None:
        known = {field.name for field in fields(self)}
        for name in kwargs:
            if name not in _LIBRARY_ARGUMENTS:
                near = difflib.get_close_matches(name, sorted(known), n=1)
                hint = f"; did you mean {near[0]!r}?" if near else ""
                raise ValueError(f"MoonConfig has no argument {name!r}{hint}")
        self.vlm_config = _read_vlm_config(self.vlm_config)
        super().__post_init__(**kwargs)
        self._validate()

    def _validate(self) -> None:
        _one_of("expert_routing", self.expert_routing, EXPERT_ROUTINGS)
        _one_of("readout", self.readout, READOUTS)
        if self.readout == "emb" and self.emb_token_id is None:
            raise ValueError("MoonConfig: readout='emb' needs emb_token_id, the id of the <emb> token")
        width = self.hidden_size
        if self.embedding_dim is not None and not 1 <= self.embedding_dim <= width:
            raise ValueError(
                f"MoonConfig: embedding_dim={self.embedding_dim}; accepted: 1 to the base's width {width}, or None"
            )
        for start, end in ((f"{aspect}_start_token_id", f"{aspect}_end_token_id") for aspect in ASPECTS):
            if (getattr(self, start) is None) != (getattr(self, end) is None):
                raise ValueError(f"MoonConfig: {start} and {end} go together; one is None")
        if self.expert_routing == "guided":
            self._validate_experts()

    def _validate_experts(self) -> None:
        free = self.num_experts - len(ASPECTS)
        if free < 1:
            raise ValueError(
                f"MoonConfig: num_experts={self.num_experts} leaves no free expert; accepted: 3 or more "
                "(guided routing reserves one for the category and one for the attributes)"
            )
        least = min(2, free)
        if not least <= self.num_experts_per_token <= free:
            raise ValueError(
                f"MoonConfig: num_experts_per_token={self.num_experts_per_token} is out of range; accepted: {least} to {free} "
                f"(num_experts={self.num_experts} has {free} free experts; fewer than 2 would give the router no gradient)"
            )
        depth = self.text_config.num_hidden_layers
        layers = self.moe_layers
        if layers is None:
            return
        if not isinstance(layers, list | tuple) or not all(isinstance(i, int) and 0 <= i < depth for i in layers):
            raise ValueError(
                f"MoonConfig: moe_layers={layers!r}; accepted: None or a list of layers from 0 to {depth - 1}"
            )
        self.moe_layers = sorted(set(layers))

    @property
    def text_config(self) -> Any:
        """The text model's configuration, inside `vlm_config`."""
        return self.vlm_config.text_config

    @property
    def vision_config(self) -> Any:
        """The vision tower's configuration, inside `vlm_config`."""
        return self.vlm_config.vision_config

    @property
    def hidden_size(self) -> int:
        """Width of the text model's hidden states. Relations: the vector's size is `vector_size`."""
        return self.vlm_config.text_config.hidden_size

    @property
    def vector_size(self) -> int:
        """Size of `embeddings`: `embedding_dim`, or the base's width where that is `None`."""
        return self.embedding_dim or self.hidden_size

    @property
    def vocab_size(self) -> int:
        """Rows of the embedding matrix."""
        return self.vlm_config.text_config.vocab_size

    @property
    def image_token_id(self) -> int:
        """Id of the placeholder of one image token."""
        return self.vlm_config.image_token_id

    @property
    def tie_word_embeddings(self) -> bool:
        """Whether the output layer is the embedding matrix, as in the base."""
        return self.vlm_config.tie_word_embeddings

    @property
    def guided_layers(self) -> tuple[int, ...]:
        """The decoder layers that are mixtures of experts."""
        if self.expert_routing == "none":
            return ()
        return tuple(range(self.text_config.num_hidden_layers)) if self.moe_layers is None else tuple(self.moe_layers)

    def get_text_config(self, decoder: bool | None = None, encoder: bool | None = None) -> PreTrainedConfig:
        """The text model's configuration (which TRL and generation ask for)."""
        return self.vlm_config.get_text_config(decoder=decoder, encoder=encoder)

    @classmethod
    def moon1(cls, vlm_config: Any = None, **overrides: Any) -> MoonConfig:
        """The preset of MOON (WSDM 2026, arXiv 2508.11999 §3): guided experts in every layer, mean pooling.

        N = 4 with both free experts on, and 256 dimensions, are our design: the paper leaves them open.

        Args:
            vlm_config: the base's configuration.
            **overrides: any argument of `MoonConfig`, so that an ablation is one changed argument.
        """
        preset: dict[str, Any] = {
            "expert_routing": "guided",
            "num_experts": 4,
            "num_experts_per_token": 2,
            "readout": "mean",
        }
        return cls(vlm_config=vlm_config, **(preset | overrides))


PRESETS = {"moon1": MoonConfig.moon1}


def _one_of(name: str, value: str, accepted: tuple[str, ...]) -> None:
    if value not in accepted:
        raise ValueError(f"MoonConfig: {name}={value!r} is not known; accepted: {', '.join(accepted)}")


def _read_vlm_config(vlm_config: Any) -> PreTrainedConfig:
    if vlm_config is None:
        vlm_config = {"model_type": BACKBONES[0]}
    if isinstance(vlm_config, dict):
        model_type = vlm_config.get("model_type")
        if model_type in BACKBONES:
            arguments = {name: value for name, value in vlm_config.items() if name != "model_type"}
            return CONFIG_MAPPING[model_type](**copy.deepcopy(arguments))
    else:
        model_type = getattr(vlm_config, "model_type", type(vlm_config).__name__)
        if model_type in BACKBONES:
            vlm_config = copy.deepcopy(vlm_config)
            vlm_config._name_or_path = ""  # a folder of the machine that converted the base
            return vlm_config
    raise ValueError(f"MoonConfig: vlm_config has model type {model_type!r}; accepted: {', '.join(BACKBONES)}")
