"""Configure a Moon model: a vision-language base and the parts that Moon adds to it. This file does not import torch."""

from __future__ import annotations

import copy
import difflib
from dataclasses import fields
from typing import Any, ClassVar

from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig
from transformers.utils import logging

logger = logging.get_logger(__name__)

BACKBONES = ("qwen3_vl", "qwen2_5_vl")
EXPERT_ROUTINGS = ("none", "guided", "modality")
READOUTS = ("mean", "emb", "last")
FUSION_SOURCES = ("states", "raw")
# The two aspects that have an expert of their own under guided routing (MOON §3.1), in the order of those experts.
ASPECTS = ("category", "attribute")
# The file and class that each Auto class loads from a checkpoint.
AUTO_MAP = {
    "AutoConfig": "configuration_moon.MoonConfig",
    "AutoModel": "modeling_moon.MoonModel",
    "AutoModelForImageTextToText": "modeling_moon.MoonForConditionalGeneration",
    "AutoModelForMultimodalLM": "modeling_moon.MoonForConditionalGeneration",
}
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
        "use_cache",
    }
)
# Passes keys of other tools from `from_dict` to the configuration.
_FOREIGN = "_foreign"


class MoonConfig(PreTrainedConfig):
    r"""Configuration of a Moon model: the base's configuration and the parts that Moon adds to it.

    Args:
        vlm_config (`PreTrainedConfig` or `dict`): configuration of the vision-language base, of model type `qwen3_vl` or
            `qwen2_5_vl`. It is copied. Default: Qwen3-VL's.
        expert_routing (`str`): the feed-forward layers of `moe_layers`: "guided" for guided mixtures of experts (MOON §3.1),
            "modality" for modality-driven ones (MOON2.0, arXiv 2511.12449), "none" for the base's dense layers.
            Default "guided".
        num_experts (`int`): N, the number of experts of a layer; under guided routing the last two are the category and the
            attribute expert. Default 4.
        num_experts_per_token (`int`): k, the number of experts that a token uses (under guided routing: of the N - 2 free
            ones). With k = 1 the weight of the single expert is 1, and the router learns through a straight-through
            estimate (our design; see `MoonMixture`). Default 2.
        moe_layers (`list[int]` or `None`): decoder layers that are mixtures; `None` for every layer, as in the paper.
        objectives (`list[str]`): names of the M alignment objectives whose preferences modality-driven experts learn
            (MOON2.0: one for each form of the query). Default ["t", "i", "mm"].
        readout (`str`): what the vector is read from: the "mean" of the last hidden states of the tokens of the product or
            query (MOON §3.1), the state of the "emb" token (MOON3.0), or of the "last" attended token (for bases that are
            embedders already).
            Default "mean".
        fusion (`bool`): whether gated attention fuses the state that is read with the image and title tokens of the input
            (MOON3.0, arXiv 2604.00513). Default False.
        fusion_source (`str`): what the fusion reads of these tokens: "states" for their last hidden states, "raw" for the
            vision tower's features and the token embeddings, before the text model mixes them. Default "states".
        fusion_heads (`int` or `None`): heads of that attention, a divisor of the base's width. Default None: heads of 128
            dimensions, which every attention kernel supports, but at least 8 heads.
        fire_layers (`list[int]` or `None`): decoder layers with fine-grained residual enhancement (MOON3.0). Default None.
        fire_rank (`int`): width of its low-rank networks. Default 64.
        fire_vision_blocks (`list[int]` or `None`): blocks of the vision tower whose outputs are the details of image
            tokens. `None`: the deep-stack features of a Qwen3-VL base; the blocks with full attention of a Qwen2.5-VL
            base; the last block of any other base.
        embedding_dim (`int` or `None`): size of the vector, at most the base's width. `None` keeps the base's width
            without a projection. Default 256.
        matryoshka_dims (`list[int]` or `None`): sizes of prefixes of the vector that are returned as well, each normalised
            (arXiv 2205.13147), at most the vector's size. Default None.
        max_reasoning_tokens (`int` or `None`): maximum length of the reasoning before the vector is read; `None` for a
            model that does not reason. Requires readout "emb". Default None.
        category_start_token_id, category_end_token_id, attribute_start_token_id, attribute_end_token_id (`int` or
            `None`): ids of the marker tokens around the category and the attributes; `None` if the vocabulary does not
            have them; that aspect's expert then receives no tokens.
        title_start_token_id, title_end_token_id (`int` or `None`): ids of those around the title, required by `fusion`.
        think_start_token_id, think_end_token_id (`int` or `None`): ids of `<think>` and `</think>`, required by
            `max_reasoning_tokens`.
        emb_token_id (`int` or `None`): id of the `<emb>` token, required by readout "emb".
        user_prefix_ids (`list[int]` or `None`): ids of the tokens that open the user's turn in the chat template, which
            contains the product or query. The mean read-out leaves out the tokens outside that turn. `None`: it takes every
            token, as in checkpoints that are older than this argument.
        turn_end_id (`int` or `None`): id of the token that ends a turn; required by `user_prefix_ids`.
        initializer_range (`float`): standard deviation of freshly initialised weights. Default 0.02.

    Raises:
        ValueError: an unknown argument (with the nearest known one), an unsupported backbone, a value out of range, a value
            of a read-only property that contradicts `vlm_config`.

    Unknown keys in a file, which other tools wrote, are kept as attributes, listed in a warning, and saved again.

    Relations: `MoonConfig.moon1(...)`, `.moon2(...)` and `.moon3(...)` are the presets of the three papers.
    """

    model_type = "moon"
    sub_configs: ClassVar = {"vlm_config": AutoConfig}
    has_no_defaults_at_init = False

    vlm_config: Any = None
    expert_routing: str = "guided"
    num_experts: int = 4
    num_experts_per_token: int = 2
    moe_layers: list[int] | None = None
    objectives: list[str] | tuple[str, ...] = ("t", "i", "mm")
    readout: str = "mean"
    fusion: bool = False
    fusion_source: str = "states"
    fusion_heads: int | None = None
    fire_layers: list[int] | None = None
    fire_rank: int = 64
    fire_vision_blocks: list[int] | None = None
    embedding_dim: int | None = 256
    matryoshka_dims: list[int] | None = None
    max_reasoning_tokens: int | None = None
    category_start_token_id: int | None = None
    category_end_token_id: int | None = None
    attribute_start_token_id: int | None = None
    attribute_end_token_id: int | None = None
    title_start_token_id: int | None = None
    title_end_token_id: int | None = None
    think_start_token_id: int | None = None
    think_end_token_id: int | None = None
    emb_token_id: int | None = None
    user_prefix_ids: list[int] | None = None
    turn_end_id: int | None = None
    initializer_range: float = 0.02

    def __post_init__(self, **kwargs: Any) -> None:
        foreign = kwargs.pop(_FOREIGN, {})
        for name in kwargs:
            if name not in self._known_arguments():
                raise ValueError(f"MoonConfig has no argument {name!r}{self._did_you_mean(name)}")
        self.vlm_config = _read_vlm_config(self.vlm_config)
        given = kwargs | foreign
        for name in [name for name in given if self._is_read_only(name)]:
            self._check_derived(name, given.pop(name))
        use_cache = given.pop("use_cache", None)  # transformers drops it as a setting of generation
        super().__post_init__(**given)
        if use_cache is not None:
            self.use_cache = use_cache
        self._validate()
        self._warn_of_foreign(foreign)

    @classmethod
    def _known_arguments(cls) -> set[str]:
        properties = {name for name, value in vars(cls).items() if isinstance(value, property)}
        return {field.name for field in fields(cls)} | _LIBRARY_ARGUMENTS | properties

    @classmethod
    def _did_you_mean(cls, name: str) -> str:
        own = {field.name for field in fields(cls)} - {field.name for field in fields(PreTrainedConfig)}
        near = difflib.get_close_matches(name, sorted(own), n=1)
        return f"; did you mean {near[0]!r}?" if near else ""

    @classmethod
    def _is_read_only(cls, name: str) -> bool:
        """Return whether a name belongs to the base or is computed, and therefore cannot be set."""
        value = getattr(cls, name, None)
        return name in ("text_config", "vision_config") or (isinstance(value, property) and value.fset is None)

    def _check_derived(self, name: str, given: Any) -> None:
        """Accept a value that equals the one the configuration has, as `to_dict` and other tools write it."""
        own = getattr(self, name)
        if isinstance(own, PreTrainedConfig):
            given = given if isinstance(given, PreTrainedConfig) else type(own)(**copy.deepcopy(given))
            same = {**given.to_dict(), "dtype": None} == {**own.to_dict(), "dtype": None}
            if not same:
                raise ValueError(
                    f"MoonConfig: {name} differs from that of vlm_config; expected the same; change it in vlm_config"
                )
        elif given != (list(own) if isinstance(own, tuple) else own):
            raise ValueError(f"MoonConfig: {name}={given!r}; expected {own!r}, which follows from the other arguments")

    def _warn_of_foreign(self, foreign: dict[str, Any]) -> None:
        """Warn once about the keys in a file that no version of Moon reads."""
        names: dict[bool, list[str]] = {True: [], False: []}
        for name in foreign:
            names[name in vars(self)].append(f"{name!r}{self._did_you_mean(name)}")
        if names[True]:
            logger.warning_once(
                f"The configuration's file has keys that Moon does not read: {', '.join(names[True])}. They are kept as "
                "attributes and saved again."
            )
        if names[False]:
            logger.warning_once(
                f"The configuration's file has settings of generation: {', '.join(names[False])}. They are left out: they "
                "belong in generation_config.json."
            )

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Make a configuration from the content of a file, as in transformers; keys that other tools wrote are kept, with a
        warning.

        Args:
            config_dict: the file's content.
            **kwargs: values that replace those of the file; names that are not attributes are returned or left out, as in
                transformers.

        Raises:
            ValueError: a known key with a value that is not accepted.
        """
        known = cls._known_arguments()
        foreign = {name: value for name, value in config_dict.items() if name not in known}
        read = {name: value for name, value in config_dict.items() if name in known}
        return super().from_dict(read | ({_FOREIGN: foreign} if foreign else {}), **kwargs)

    @classmethod
    def from_json_file(cls, json_file: Any) -> Any:
        """Make a configuration from a file; see `from_dict`."""
        return cls.from_dict(cls._dict_from_json_file(json_file))

    def to_dict(self) -> dict[str, Any]:
        """Return the configuration as in transformers, with `text_config` and `tie_word_embeddings` of the base, which peft
        reads there.

        Relations: config.json has them once, in `vlm_config`.
        """
        output = super().to_dict()
        if isinstance(self.vlm_config, PreTrainedConfig):
            output["text_config"] = output["vlm_config"]["text_config"]
            output["tie_word_embeddings"] = self.tie_word_embeddings
        return output

    def to_diff_dict(self) -> dict[str, Any]:
        """Return the content of config.json, as in transformers."""
        output = super().to_diff_dict()
        for name in ("text_config", "tie_word_embeddings"):
            output.pop(name, None)
        return output

    def _validate(self) -> None:
        _one_of("expert_routing", self.expert_routing, EXPERT_ROUTINGS)
        _one_of("readout", self.readout, READOUTS)
        _one_of("fusion_source", self.fusion_source, FUSION_SOURCES)
        if self.readout == "emb" and self.emb_token_id is None:
            raise ValueError("MoonConfig: readout='emb' needs emb_token_id, the id of the <emb> token")
        for name in (field.name for field in fields(self) if field.name.endswith(("_token_id", "turn_end_id"))):
            token = getattr(self, name)
            if token is not None and token not in range(self.vocab_size):
                raise ValueError(f"MoonConfig: {name}={token!r}; expected an id below {self.vocab_size}, or None")
        for span in (*ASPECTS, "title", "think"):
            start, end = f"{span}_start_token_id", f"{span}_end_token_id"
            if (getattr(self, start) is None) != (getattr(self, end) is None):
                raise ValueError(f"MoonConfig: {start} and {end} go together; one is None")
        self._validate_turns()
        self._validate_vector()
        self._validate_experts()
        self._validate_fire()
        if not isinstance(self.fusion, bool):
            raise ValueError(f"MoonConfig: fusion={self.fusion!r}; expected True or False")
        if self.fusion:
            self._validate_fusion()
        elif self.fusion_source != FUSION_SOURCES[0]:
            raise ValueError(f"MoonConfig: fusion_source={self.fusion_source!r} without fusion; expected fusion=True")
        if self.max_reasoning_tokens is not None:
            self._validate_reasoning()

    def _validate_turns(self) -> None:
        prefix = self.user_prefix_ids
        if (prefix is None) != (self.turn_end_id is None):
            raise ValueError("MoonConfig: user_prefix_ids and turn_end_id go together; one is None")
        if prefix is not None and (not prefix or any(token not in range(self.vocab_size) for token in prefix)):
            raise ValueError(
                f"MoonConfig: user_prefix_ids={prefix!r}; expected None or at least one id below {self.vocab_size}"
            )

    def _validate_vector(self) -> None:
        width = self.hidden_size
        for name in ("embedding_dim", "num_experts", "num_experts_per_token", "fire_rank", "max_reasoning_tokens"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or isinstance(value, bool)):
                raise ValueError(f"MoonConfig: {name}={value!r}; expected a whole number")
        if self.embedding_dim is not None and not 1 <= self.embedding_dim <= width:
            raise ValueError(
                f"MoonConfig: embedding_dim={self.embedding_dim}; expected 1 to the base's width {width}, or None"
            )
        self.matryoshka_dims = self._ascending("matryoshka_dims", range(1, self.vector_size + 1))

    def _validate_experts(self) -> None:
        if isinstance(self.objectives, str) or not self.objectives or len(set(self.objectives)) < len(self.objectives):
            raise ValueError(f"MoonConfig: objectives={self.objectives!r}; expected different names, at least one")
        self.objectives = list(self.objectives)
        if self.expert_routing == "none":
            return
        free = self.num_free_experts
        reserved = self.num_experts - free
        if free < 1:
            raise ValueError(
                f"MoonConfig: num_experts={self.num_experts} leaves no free expert; expected {reserved + 1} or more"
                + (" (guided routing reserves one for the category and one for the attributes)" if reserved else "")
            )
        if not 1 <= self.num_experts_per_token <= free:
            raise ValueError(
                f"MoonConfig: num_experts_per_token={self.num_experts_per_token} is out of range; expected 1 to {free} "
                f"(of num_experts={self.num_experts}, {free} are free)"
            )
        self.moe_layers = self._ascending("moe_layers", range(self.text_config.num_hidden_layers))

    def _validate_fire(self) -> None:
        self.fire_layers = self._ascending("fire_layers", range(self.text_config.num_hidden_layers))
        self.fire_vision_blocks = self._ascending("fire_vision_blocks", range(self.vision_config.depth))
        if self.fire_vision_blocks and not self.fire_layers:
            raise ValueError(
                "MoonConfig: fire_vision_blocks without fire_layers; expected at least one layer in fire_layers"
            )
        if self.fire_rank < 1:
            raise ValueError(f"MoonConfig: fire_rank={self.fire_rank}; expected 1 or more")

    def _validate_fusion(self) -> None:
        if self.fusion_heads is None:
            self.fusion_heads = max(8, self.hidden_size // 128)
        if self.fusion_heads < 1 or self.hidden_size % self.fusion_heads:
            raise ValueError(
                f"MoonConfig: fusion_heads={self.fusion_heads}; expected a divisor of the base's width {self.hidden_size}"
            )
        if self.title_start_token_id is None:
            raise ValueError("MoonConfig: fusion needs title_start_token_id and title_end_token_id; found None")

    def _validate_reasoning(self) -> None:
        if self.max_reasoning_tokens is not None and self.max_reasoning_tokens < 1:
            raise ValueError(
                f"MoonConfig: max_reasoning_tokens={self.max_reasoning_tokens}; expected 1 or more, or None"
            )
        if self.readout != "emb":
            raise ValueError(f"MoonConfig: reasoning is read at <emb>; found readout={self.readout!r}; expected 'emb'")
        if self.think_start_token_id is None:
            raise ValueError("MoonConfig: reasoning needs think_start_token_id and think_end_token_id; found None")

    def _ascending(self, name: str, accepted: range) -> list[int] | None:
        """Return the whole numbers of a field, sorted, each once; None stays None."""
        values = getattr(self, name)
        if values is None:
            return None
        if not isinstance(values, list | tuple) or not all(type(i) is int and i in accepted for i in values):
            raise ValueError(
                f"MoonConfig: {name}={values!r}; expected None or a list of whole numbers from {accepted.start} to "
                f"{accepted.stop - 1}"
            )
        return sorted(set(values))

    @property
    def text_config(self) -> Any:
        """The text model's configuration, inside `vlm_config`."""
        return self.vlm_config.text_config

    @text_config.setter
    def text_config(self, value: Any) -> None:
        self.vlm_config.text_config = value

    @property
    def vision_config(self) -> Any:
        """The vision tower's configuration, inside `vlm_config`."""
        return self.vlm_config.vision_config

    @vision_config.setter
    def vision_config(self, value: Any) -> None:
        self.vlm_config.vision_config = value

    @property
    def hidden_size(self) -> int:
        """Width of the text model's hidden states. Relations: `vector_size` is the size of the vector."""
        return self.vlm_config.text_config.hidden_size

    @property
    def vector_size(self) -> int:
        """Size of `embeddings`: `embedding_dim`, or the base's width if that is `None`."""
        return self.embedding_dim or self.hidden_size

    @property
    def vocab_size(self) -> int:
        """Number of rows of the embedding matrix."""
        return self.vlm_config.text_config.vocab_size

    @vocab_size.setter
    def vocab_size(self, value: int) -> None:
        self.vlm_config.text_config.vocab_size = value

    @property
    def num_hidden_layers(self) -> int:
        """Number of decoder layers of the text model."""
        return self.vlm_config.text_config.num_hidden_layers

    @property
    def image_token_id(self) -> int:
        """Id of the placeholder of an image token."""
        return self.vlm_config.image_token_id

    @image_token_id.setter
    def image_token_id(self, value: int) -> None:
        self.vlm_config.image_token_id = value

    @property
    def tie_word_embeddings(self) -> bool:
        """Whether the output layer is the embedding matrix, as in the base."""
        return self.vlm_config.tie_word_embeddings

    @tie_word_embeddings.setter
    def tie_word_embeddings(self, value: bool) -> None:
        self.vlm_config.tie_word_embeddings = value
        if hasattr(self.text_config, "tie_word_embeddings"):  # Qwen2.5-VL reads it there as well
            self.text_config.tie_word_embeddings = value

    @property
    def mixture_layers(self) -> tuple[int, ...]:
        """The decoder layers that are mixtures of experts."""
        if self.expert_routing == "none":
            return ()
        return tuple(range(self.text_config.num_hidden_layers)) if self.moe_layers is None else tuple(self.moe_layers)

    @property
    def num_free_experts(self) -> int:
        """Number of experts of a mixture that are not reserved for an aspect."""
        return self.num_experts - (len(ASPECTS) if self.expert_routing == "guided" else 0)

    @property
    def keeps_cache(self) -> bool | None:
        """The value of `use_cache`, which trainers set; None if it is unset, in which case the base decides."""
        return getattr(self, "use_cache", None)

    @property
    def reads_aspects(self) -> bool:
        """Whether aspect markers in the text choose the experts of any layer."""
        return self.expert_routing == "guided" and bool(self.mixture_layers)

    @property
    def detail_blocks(self) -> tuple[int, ...]:
        """Blocks of the vision tower whose outputs FIRE reads; empty if it reads deep-stack features, or nothing."""
        if not self.fire_layers:
            return ()
        if self.fire_vision_blocks is not None:
            return tuple(self.fire_vision_blocks)
        if getattr(self.vision_config, "deepstack_visual_indexes", None):
            return ()
        full = getattr(self.vision_config, "fullatt_block_indexes", None) or ()
        return tuple(block for block in full if block < self.vision_config.depth) or (self.vision_config.depth - 1,)

    def get_text_config(self, decoder: bool | None = None, encoder: bool | None = None) -> PreTrainedConfig:
        """Return the text model's configuration, which TRL and generation read."""
        return self.vlm_config.get_text_config(decoder=decoder, encoder=encoder)

    @classmethod
    def moon1(cls, vlm_config: Any = None, **overrides: Any) -> MoonConfig:
        """Return the preset of MOON (WSDM 2026, arXiv 2508.11999 §3.1): guided experts in every layer, mean pooling.

        N = 4 with both free experts active, and 256 dimensions, are our design: the paper does not state them.

        Args:
            vlm_config: the base's configuration.
            **overrides: any argument of `MoonConfig`; an ablation changes one.
        """
        preset: dict[str, Any] = {
            "expert_routing": "guided",
            "num_experts": 4,
            "num_experts_per_token": 2,
            "readout": "mean",
        }
        return cls(vlm_config=vlm_config, **(preset | overrides))

    @classmethod
    def moon2(cls, vlm_config: Any = None, **overrides: Any) -> MoonConfig:
        """Return the preset of MOON2.0 (CVPR 2026, arXiv 2511.12449): modality-driven experts in every layer, mean pooling.

        Z = 4 experts, two of them active, and the objectives' names t, i, mm are our design. Dual alignment and sample
        filtering belong to training.

        Args:
            vlm_config: the base's configuration.
            **overrides: any argument of `MoonConfig`.
        """
        preset: dict[str, Any] = {
            "expert_routing": "modality",
            "num_experts": 4,
            "num_experts_per_token": 2,
            "objectives": ["t", "i", "mm"],
            "readout": "mean",
        }
        return cls(vlm_config=vlm_config, **(preset | overrides))

    @classmethod
    def moon3(cls, vlm_config: Any = None, **overrides: Any) -> MoonConfig:
        """Return the preset of MOON3.0 (arXiv 2604.00513): guided experts, `<emb>`, fusion, FIRE in four layers, reasoning.

        The 256 dimensions are the paper's; four FIRE layers, spread evenly, and at most 32 reasoning tokens (the best value
        in LREM, arXiv 2510.14321) are our design.

        Args:
            vlm_config: the base's configuration.
            **overrides: any argument of `MoonConfig`; the ids of the title, think and `<emb>` tokens are required.
        """
        vlm_config = _read_vlm_config(vlm_config)
        depth = vlm_config.text_config.num_hidden_layers
        preset: dict[str, Any] = {
            "expert_routing": "guided",
            "num_experts": 4,
            "num_experts_per_token": 2,
            "readout": "emb",
            "fusion": True,
            "fire_layers": sorted({(2 * i + 1) * depth // 8 for i in range(4)}),
            "max_reasoning_tokens": 32,
        }
        return cls(vlm_config=vlm_config, **(preset | overrides))


PRESETS = {"moon1": MoonConfig.moon1, "moon2": MoonConfig.moon2, "moon3": MoonConfig.moon3}


def _one_of(name: str, value: str, accepted: tuple[str, ...]) -> None:
    if value not in accepted:
        raise ValueError(f"MoonConfig: {name}={value!r} is not known; expected one of {', '.join(accepted)}")


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
            vlm_config._name_or_path = ""  # may be a folder of another machine
            return vlm_config
    raise ValueError(f"MoonConfig: vlm_config has model type {model_type!r}; expected one of {', '.join(BACKBONES)}")
