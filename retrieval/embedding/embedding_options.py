"""Define the options of the embedding job, and which of them a vector depends on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from product_data.errors import OptionError
from product_data.rows import PRODUCT_FORMS
from retrieval.product_encoder import default_workers
from retrieval.reasoning_options import ROW_REASONING
from retrieval.vectors.vector_types import DTYPES

EXECUTORS = {"local": "local", "ray": "ray_data"}
"""Name → file of `retrieval/embedding/executors/`; no file bears the name of a library."""


@dataclass(frozen=True)
class EmbeddingOptions:
    """Options of the embedding job.

    Args:
        model (`str`): folder, hub id, or a kind and its place, see `retrieval.model_kinds`.
        forms: forms to embed each product in, of "mm", "t" and "i". Default ("mm",).
        reasoning (`str`): "none", or "generate": the model writes attributes before each vector is read. Default "none".
        dtype (`str`): type of the stored vectors: "float32", "float16" or "int8". Default "float32".
        batch_size (`int`): products per batch of the model. Default 32.
        device (`str` or `None`): device of the model. Default: the first GPU, or else the CPU.
        executor (`str`): "local": this process holds the model; "ray": processes of Ray, on one machine or a cluster.
        workers (`int` or `None`): of "local", processes that prepare pictures and texts, 0 for a thread of this process; the
            default is 0 for a model on the CPU, or else one for each CPU but one. Of "ray", processes that hold the
            model; the default is 1.
        reduced_decoding (`bool`): decode large JPEG files at a reduced scale, see `retrieval.product_encoder`. Default True.
        rows_per_shard (`int`): vectors per shard; a killed job loses the shard in work. Default 2048.
        allow_removal (`bool`): go on if over half of the products are no longer in the feed. Default False.
        imports: modules that each process imports before it loads the model, such as "evaluation.baselines", which makes
            the peers' kinds known. Default: none.

    Raises:
        OptionError: a value that is not accepted.
    """

    model: str
    forms: tuple[str, ...] = ("mm",)
    reasoning: str = "none"
    dtype: str = "float32"
    batch_size: int = 32
    device: str | None = None
    executor: str = "local"
    workers: int | None = None
    reduced_decoding: bool = True
    rows_per_shard: int = 2048
    allow_removal: bool = False
    imports: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name, accepted in (("reasoning", ROW_REASONING), ("dtype", DTYPES), ("executor", EXECUTORS)):
            if getattr(self, name) not in accepted:
                raise OptionError(f"{name}={getattr(self, name)!r}; expected one of {', '.join(accepted)}")
        least = int(self.executor == "ray")
        if self.workers is not None and self.workers < least:
            raise OptionError(f"workers={self.workers} with executor={self.executor!r}; expected {least} or more")
        for name in ("batch_size", "rows_per_shard"):
            if getattr(self, name) < 1:
                raise OptionError(f"{name}={getattr(self, name)}; expected 1 or more")
        if not self.forms or len({*self.forms} & {*PRODUCT_FORMS}) < len(self.forms):
            found = " ".join(self.forms) or "nothing"
            raise OptionError(f"forms: found {found}; expected some of {' '.join(PRODUCT_FORMS)}, each once")

    def vector_settings(self) -> dict[str, Any]:
        """Return the settings that change a vector of one form; with others, products are embedded again."""
        return {"reasoning": self.reasoning, "dtype": self.dtype, "reduced_decoding": self.reduced_decoding}

    def torch_device(self) -> str:
        """Return the device of the model."""
        return self.device or ("cuda" if torch.cuda.is_available() else "cpu")

    def models(self) -> int:
        """Return the number of processes that hold the model."""
        return 1 if self.executor == "local" else self.workers or 1

    def preparing_workers(self) -> int:
        """Return the number of processes that prepare pictures and texts for one model; 0 is a thread of its process."""
        if self.executor != "local":
            return 0
        if self.workers is None:
            return 0 if self.torch_device() == "cpu" else default_workers()
        return self.workers
