"""One shard's work: which models are refused, and what an executor that is not installed says."""

from __future__ import annotations

import sys

import pytest
from small_feeds import feed
from tiny_peers import make_text_encoder

from product_data.errors import OptionError
from retrieval.embedding.embedding_options import EmbeddingOptions
from retrieval.embedding.executors import ray_data
from retrieval.embedding.job import embed_feed
from retrieval.model_kinds import CheckpointError
from retrieval.vectors.vector_files import VectorFolder


def test_a_text_model_is_refused_for_pictures_and_embeds_texts(tmp_path):
    model = f"sentence_transformer={make_text_encoder(tmp_path / 'text')}"
    options = {"model": model, "imports": ("evaluation.baselines",), "device": "cpu"}
    products = feed(tmp_path, range(3))
    with pytest.raises(
        CheckpointError, match=r"reads no pictures, and 3 of 3 products .*; expected --forms t, or a model"
    ):
        embed_feed(products, tmp_path / "v", EmbeddingOptions(**options), report=str)
    assert embed_feed(products, tmp_path / "v", EmbeddingOptions(**options, forms=("t",)), report=str).embedded == 3
    assert VectorFolder(tmp_path / "v").embedding.model == model


def test_reasoning_with_a_model_that_does_not_reason_is_refused(tmp_path, tiny_moon):
    options = EmbeddingOptions(str(tiny_moon("qwen3_vl")), reasoning="generate")
    with pytest.raises(OptionError, match="does not reason"):
        embed_feed(feed(tmp_path, range(2)), tmp_path / "v", options, report=str)


def test_ray_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(OptionError, match=r"needs Ray; expected pip install 'moon3\[ray\]'"):
        next(ray_data.run([], EmbeddingOptions("m", executor="ray"), "f"))
