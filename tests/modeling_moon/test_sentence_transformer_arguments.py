"""What sentence-transformers hands to Moon: every argument is honoured or refused by its name."""

from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset, Features, Value
from datasets import Image as ImageFeature
from PIL import Image
from sentence_transformers import SentenceTransformer
from transformers import AutoTokenizer

import processing_moon  # noqa: F401 - registers the processor

IMAGE = Image.fromarray((np.arange(96 * 64 * 3).reshape(96, 64, 3) % 251).astype("uint8"))
LONG = "blue cotton shirt " * 100


@pytest.fixture
def encoder(tiny_moon: Any) -> SentenceTransformer:
    return SentenceTransformer(str(tiny_moon("qwen3_vl")))


@pytest.mark.parametrize("group", ["model_kwargs", "processor_kwargs", "config_kwargs", "tokenizer_kwargs"])
@pytest.mark.parametrize("setting", [{"trust_remote_code": True}, {"local_files_only": True}, {"token": False}])
def test_a_setting_of_the_call_may_stand_in_a_group_too(tiny_moon, encoder, group, setting):
    again = SentenceTransformer(str(tiny_moon("qwen3_vl")), **{group: setting})
    np.testing.assert_allclose(again.encode(["red shoes"]), encoder.encode(["red shoes"]), rtol=1e-6, atol=1e-6)


def test_a_setting_in_a_group_stands_before_the_one_of_the_call(tiny_moon, monkeypatch):
    seen: dict[str, Any] = {}
    module = type(SentenceTransformer(str(tiny_moon("qwen3_vl")))[0])

    class Recorder:
        def __init__(self, name: str) -> None:
            self.name = name

        def from_pretrained(self, *args: Any, **settings: Any) -> Any:
            seen[self.name] = settings
            raise RuntimeError(self.name)

    for name in ("AutoModel", "AutoProcessor"):
        monkeypatch.setitem(module.load.__func__.__globals__, name, Recorder(name))
        with pytest.raises(RuntimeError, match=name):
            module.load(
                str(tiny_moon("qwen3_vl")),
                revision="main",
                model_kwargs={"revision": "model"},
                processor_kwargs={"revision": "processor"},
            )
        monkeypatch.undo()
    assert seen["AutoModel"]["revision"] == "model"
    assert seen["AutoProcessor"]["revision"] == "processor"


def test_settings_of_the_processor_are_kept(tiny_moon):
    settings = {
        "max_tokens": 90,
        "max_image_tokens": 9,
        "core_crop": False,
        "padding_side": "right",
        "max_pixels": 50_000,
    }
    for name in ("processor_kwargs", "tokenizer_kwargs"):
        processor = SentenceTransformer(str(tiny_moon("qwen3_vl")), **{name: settings})[0].processor
        assert (processor.max_tokens, processor.max_image_tokens, processor.core_crop) == (90, 9, False)
        assert processor.tokenizer.padding_side == "right"
        assert processor.image_processor.size["longest_edge"] == 50_000


@pytest.mark.parametrize("group", ["processor_kwargs", "tokenizer_kwargs"])
@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"model_max_length": 64}, r"model_max_length=64 .*\(the token budget is max_tokens\); expected .*max_tokens"),
        ({"use_fast": True}, "use_fast=True"),
        ({"max_token": 64}, "max_token=64"),
    ],
)
def test_settings_that_the_processor_does_not_have_are_refused_by_name(tiny_moon, group, setting, message):
    with pytest.raises(ValueError, match=message):
        SentenceTransformer(str(tiny_moon("qwen3_vl")), **{group: setting})


@pytest.mark.parametrize("group", ["text", "common"])
def test_options_of_the_processor_may_be_given_for_one_call(encoder, group):
    whole, before = encoder.encode([LONG]), encoder.max_seq_length
    short = encoder.encode([LONG], processing_kwargs={group: {"max_length": 90}})
    assert np.abs(whole - short).max() > 1e-4
    encoder.max_seq_length = 90
    np.testing.assert_allclose(encoder.encode([LONG]), short, rtol=1e-6, atol=1e-6)
    encoder.max_seq_length = before
    features = encoder.preprocess([LONG], processing_kwargs={group: {"max_length": 90}})
    assert features["input_ids"].shape == (1, 90)


def test_pictures_may_be_made_smaller_for_one_call(encoder):
    def image_tokens(**options: Any) -> int:
        return int(encoder.preprocess([IMAGE], **options)["mm_token_type_ids"].sum())

    assert image_tokens(processing_kwargs={"image": {"max_image_tokens": 2}}) <= 2 < image_tokens()
    record = {"title": "a bag", "images": IMAGE, "core_box": [4, 4, 50, 60]}
    for crop in (True, False):
        batch = encoder.preprocess([record], processing_kwargs={"image": {"core_crop": crop}})
        assert batch["num_images_per_sample"].tolist() == [1 + crop]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"audio": {"sampling_rate": 1}}, "group 'audio' is not known; expected one of 'common', 'text', 'image'"),
        ({"chat_template": {"enable_thinking": True}}, "group 'chat_template' is not known"),
        ({"max_length": 64}, "group 'max_length' is not known"),
        ({"text": {"max_lenght": 64}}, "unknown option 'max_lenght'"),
        ({"text": {"truncation": False}}, "truncation is not an option"),
        ({"common": {"return_tensors": "np"}}, "return_tensors is not an option"),
    ],
)
def test_other_options_for_one_call_are_refused_by_name(encoder, given, message):
    for prompt in (None, "Find it."):
        with pytest.raises(ValueError, match=message):
            encoder.encode(["red shoes"], prompt=prompt, processing_kwargs=given)


def test_an_argument_that_nothing_reads_is_refused_by_name(encoder):
    with pytest.raises(ValueError, match=r"truncate=True is not known; expected one of task, processing_kwargs"):
        encoder.preprocess(["red shoes"], truncate=True)
    with pytest.raises(ValueError, match="temperature"):
        encoder.encode(["red shoes"], temperature=1)


@pytest.mark.parametrize("name", ["token_embeddings", "sparse_embedding"])
def test_an_output_that_moon_does_not_have_is_refused_in_a_sentence(tiny_moon, encoder, name):
    thinker = SentenceTransformer(str(tiny_moon("qwen3_vl", preset="moon3")))
    for one, options in (
        (encoder, {}),
        (thinker, {}),
        (thinker, {"reasoning": "generate", "thinking": {"max_tokens": 2}}),
    ):
        with pytest.raises(ValueError, match=f"one vector for each input, not '{name}'; expected output_value='sent"):
            one.encode(["red shoes"], output_value=name, **options)
    found = encoder.encode(["red shoes"], output_value=None)[0]
    np.testing.assert_allclose(found["sentence_embedding"], encoder.encode("red shoes"), rtol=1e-6, atol=1e-6)
    features = encoder.preprocess(["red shoes"])
    assert encoder(features)["sentence_embedding"] is features["sentence_embedding"]  # as losses of the library expect


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        (("red shoes", "blue shoes"), "input 0: found a tuple of 2; expected one input at a time"),
        (["red shoes", "blue shoes"], "input 0: found a list of 2; expected one input at a time"),
        (("red shoes", IMAGE), r'input 0: found a tuple of 2.*picture are {"text": …, "image": …}'),
        ([IMAGE, IMAGE], "input 0: found a list of 2"),
    ],
)
def test_a_pair_is_refused_in_a_sentence(encoder, pair, message):
    with pytest.raises(ValueError, match=message):
        encoder.encode([pair, "red shoes"])


def test_another_tokenizer_is_refused_in_a_sentence(tiny_moon, encoder):
    before = encoder.tokenizer
    with pytest.raises(ValueError, match="tokenizer: found a different .*; expected the processor's own"):
        encoder.tokenizer = AutoTokenizer.from_pretrained(tiny_moon("qwen2_5_vl"))
    encoder.tokenizer = before
    assert encoder.tokenizer is before


def test_pictures_inside_the_records_of_a_dataset_are_read(encoder):
    records = [{"text": "in blue", "image": IMAGE}, {"text": "a mug", "image": None}]
    expected = encoder.encode(records)
    plain = Dataset.from_dict({"query": records})
    declared = Dataset.from_dict(
        {"query": records}, features=Features({"query": {"text": Value("string"), "image": ImageFeature()}})
    )
    for table in (
        plain,
        declared,
        declared.cast_column("query", {"text": Value("string"), "image": ImageFeature(decode=False)}),
    ):
        np.testing.assert_allclose(encoder.encode(list(table["query"])), expected, rtol=1e-6, atol=1e-6)
    products = [{"title": "a bag", "images": [IMAGE, IMAGE]}]
    table = Dataset.from_dict({"product": products})
    np.testing.assert_allclose(
        encoder.encode_document(table["product"]), encoder.encode_document(products), rtol=1e-6, atol=1e-6
    )
    alone = Dataset.from_dict({"image": [IMAGE]}).cast_column("image", ImageFeature(decode=False))
    np.testing.assert_allclose(encoder.encode(list(alone["image"])), encoder.encode([IMAGE]), rtol=1e-6, atol=1e-6)


def test_the_vectors_of_a_peft_model_are_those_of_the_model_inside(encoder):
    from peft import LoraConfig, get_peft_model

    expected = encoder.encode(["red shoes", {"image": IMAGE}])
    encoder[0].model = get_peft_model(encoder[0].model, LoraConfig(r=2, target_modules=["q_proj"]))
    np.testing.assert_allclose(encoder.encode(["red shoes", {"image": IMAGE}]), expected, rtol=1e-6, atol=1e-6)
    assert isinstance(encoder.transformers_model, torch.nn.Module)
