"""A base from a language model computes what the language model computes, and what it cannot compute is refused."""

import importlib.util
import json

import pytest
import torch
from safetensors.torch import load_file
from tiny_donors import TEMPLATE, donor_tokenizer, tiny_donor, write_gguf
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, AutoTokenizer

from model_cards.metadata import front_matter
from modeling_moon import MoonForConditionalGeneration
from processing_moon import MoonProcessor
from product_data.errors import OptionError
from product_data.outputs import OutputError
from training.model.base_tokenizer import VISION_TOKENS
from training.model.donor import DonorError, open_donor
from training.model.text_base import make_text_base, rotary_sections
from training.model.upcycle import upcycle

PROMPTS = ["red shoes for women", "A mug, 12 oz — très cher", "皮包 👟"]
VISION = {"hidden_size": 32, "depth": 2, "max_image_tokens": 4, "min_image_tokens": 1}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 5000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


def hidden_states(model, ids):
    with torch.no_grad():
        found = model(input_ids=torch.tensor([ids]), output_hidden_states=True)
    return torch.stack(found.hidden_states), found.logits


def assert_equal(donor, base, **options):
    """Assert equal ids, hidden states and logits; return the number of compared values."""
    model = AutoModelForCausalLM.from_pretrained(donor, dtype=torch.float32, **options)
    layers = (ours := AutoModelForImageTextToText.from_pretrained(base)).config.text_config.num_hidden_layers
    model.model.layers = model.model.layers[:layers]
    theirs, tokenizer = AutoTokenizer.from_pretrained(donor, **options), AutoTokenizer.from_pretrained(base)
    for prompt in PROMPTS:
        ids = theirs(prompt)["input_ids"]
        assert len(ids) > 2
        assert tokenizer(prompt)["input_ids"] == ids
        expected, found = hidden_states(model, ids), hidden_states(ours, ids)
        torch.testing.assert_close(found[0], expected[0], rtol=0, atol=1e-5)
        torch.testing.assert_close(found[1][..., : len(theirs)], expected[1][..., : len(theirs)], rtol=0, atol=1e-5)
        assert expected[0].std() > 0.1


@pytest.mark.parametrize(
    ("kind", "config"),
    [
        ("llama", {}),
        ("llama", {"tie_word_embeddings": False, "num_key_value_heads": 4}),
        ("llama", {"rope_parameters": LLAMA3}),
        ("qwen2", {}),
        ("qwen2", {"num_attention_heads": 1, "num_key_value_heads": 1, "tie_word_embeddings": False}),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 3}),
        ("mistral", {}),
    ],
)
def test_hidden_states_and_logits_are_those_of_the_language_model(tmp_path, kind, config):
    donor = tiny_donor(tmp_path / "donor", kind, **config)
    base = make_text_base(donor, tmp_path / "base", vision=VISION)
    assert_equal(donor, base)
    found, expected = AutoConfig.from_pretrained(base).text_config, AutoConfig.from_pretrained(donor)
    assert found.rms_norm_eps == expected.rms_norm_eps
    assert found.rope_parameters["rope_theta"] == 5000.0
    assert sum(found.rope_parameters["mrope_section"]) == 32 // expected.num_attention_heads


def test_positions_matter_to_the_comparison(tmp_path):
    """Another base frequency gives other hidden states, so the equality above is not empty."""
    donor = tiny_donor(tmp_path / "donor")
    base = make_text_base(donor, tmp_path / "base", vision=VISION)
    config = json.loads((base / "config.json").read_text())
    config["text_config"]["rope_parameters"]["rope_theta"] = 6000.0
    (base / "config.json").write_text(json.dumps(config))
    with pytest.raises(AssertionError, match="not close"):
        assert_equal(donor, base)


def test_the_sections_are_those_of_qwen():
    assert rotary_sections(128) == [16, 24, 24]  # Qwen2.5-VL
    assert rotary_sections(64) == [8, 12, 12]


def test_layers_are_kept_from_the_bottom(tmp_path):
    donor = tiny_donor(tmp_path / "donor", "qwen2")
    base = make_text_base(donor, tmp_path / "base", layers=2, vision=VISION)
    assert AutoConfig.from_pretrained(base).text_config.num_hidden_layers == 2
    assert_equal(donor, base)


def test_added_tokens_have_the_mean_embedding_and_the_others_keep_theirs(tmp_path):
    donor = tiny_donor(tmp_path / "donor", tie_word_embeddings=False)
    base = make_text_base(donor, tmp_path / "base", vision=VISION)
    theirs, tokenizer = AutoTokenizer.from_pretrained(donor), AutoTokenizer.from_pretrained(base)
    stored = load_file(donor / "model.safetensors")
    written = {name.removeprefix("model."): tensor for name, tensor in load_file(base / "model.safetensors").items()}
    written = {name.replace("language_model.", ""): tensor for name, tensor in written.items()}
    for ours, name in (("embed_tokens.weight", "model.embed_tokens.weight"), ("lm_head.weight", "lm_head.weight")):
        known = stored[name][: len(theirs)]
        assert torch.equal(written[ours][: len(theirs)], known)
        for token in VISION_TOKENS:
            row = written[ours][tokenizer.convert_tokens_to_ids(token)]
            torch.testing.assert_close(row, known.mean(dim=0), rtol=0, atol=1e-6)
    assert {
        token: id_ for token, id_ in tokenizer.get_vocab().items() if token not in VISION_TOKENS
    } == theirs.get_vocab()
    assert "<|image_pad|>" in (base / "README.md").read_text()


def test_conversations_are_rendered_as_before_and_pictures_have_their_place(tmp_path):
    base = make_text_base(tiny_donor(tmp_path / "donor"), tmp_path / "base", vision=VISION)
    theirs, ours = AutoTokenizer.from_pretrained(tmp_path / "donor"), AutoTokenizer.from_pretrained(base)
    chats = [
        [{"role": "user", "content": "hello "}],
        [{"role": "system", "content": " Be brief."}, {"role": "user", "content": "a\nb"}],
        [{"role": role, "content": role} for role in ("user", "assistant", "user")],
    ]
    for chat in chats:
        for prompt in (True, False):
            expected = theirs.apply_chat_template(chat, tokenize=False, add_generation_prompt=prompt)
            assert ours.apply_chat_template(chat, tokenize=False, add_generation_prompt=prompt) == expected
    parts = [{"type": "image"}, {"type": "text", "text": "a shoe"}, {"type": "video"}]
    found = ours.apply_chat_template([{"role": "user", "content": parts}], tokenize=False)
    image = "<|vision_start|><|image_pad|><|vision_end|>"
    video = "<|vision_start|><|video_pad|><|vision_end|>"
    assert found == (f"<|im_start|>system\nYou are kind.<|im_end|>\n<|im_start|>user\n{image}a shoe{video}<|im_end|>\n")


def test_a_template_that_begins_with_line_breaks_keeps_them(tmp_path):
    tokenizer = donor_tokenizer("\n\n" + TEMPLATE)
    base = make_text_base(tiny_donor(tmp_path / "donor", tokenizer=tokenizer), tmp_path / "base", vision=VISION)
    chat = [{"role": "user", "content": "hello"}]
    expected = tokenizer.apply_chat_template(chat, tokenize=False)
    assert AutoTokenizer.from_pretrained(base).apply_chat_template(chat, tokenize=False) == expected
    assert expected.startswith("\n")


def test_a_model_without_a_chat_template_or_padding_gets_those_of_qwen(tmp_path):
    tokenizer = donor_tokenizer(None)
    tokenizer.pad_token = None
    donor = tiny_donor(tmp_path / "donor", tokenizer=tokenizer)
    base = make_text_base(donor, tmp_path / "base", vision=VISION)
    assert_equal(donor, base)
    ours = AutoTokenizer.from_pretrained(base)
    found = ours.apply_chat_template([{"role": "user", "content": "hello"}], tokenize=False)
    assert found == "<|im_start|>user\nhello<|im_end|>\n"
    assert ours.pad_token == "<|endoftext|>"


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ strftime_now('%d') }}" + TEMPLATE, "found strftime_now, which would change each vector with the date"),
        ("{{ raise_exception('no system') }}", "cannot render a system and a user message"),
        ("{% for message in messages %}{{ message['role'] }}{% endfor %}", "drops or repeats text or pictures"),
    ],
)
def test_a_chat_template_that_cannot_serve_is_refused(tmp_path, template, message):
    donor = tiny_donor(tmp_path / "donor", tokenizer=donor_tokenizer(template))
    with pytest.raises(DonorError, match=message):
        make_text_base(donor, tmp_path / "base", vision=VISION)
    assert not (tmp_path / "base").exists()


@pytest.mark.parametrize(
    ("kind", "config", "message"),
    [
        ("llama", {"attention_bias": True}, "attention_bias: found True; expected False"),
        ("llama", {"mlp_bias": True}, "mlp_bias: found True"),
        ("llama", {"hidden_act": "gelu"}, "hidden_act: found 'gelu'; expected 'silu'"),
        ("llama", {"head_dim": 32}, "head_dim: found 32 × 4 heads; expected a product of hidden_size=64"),
        (
            "llama",
            {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0}},
            "rope_type: found 'yarn'; expected one of default, llama3",
        ),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}, "sliding_window: found 8"),
        ("mistral", {"sliding_window": 128}, "sliding_window: found 128; expected full attention in every layer"),
        ("mixtral", {}, r"num_experts: found 8 \(a mixture of experts\); expected a dense model"),
        ("qwen3", {"head_dim": 16}, "model_type: found 'qwen3'; expected one of qwen2, llama, mistral"),
    ],
)
def test_a_property_that_the_text_model_does_not_have_is_refused_by_name(tmp_path, kind, config, message):
    donor = tmp_path / "donor"
    sizes = {"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 2}
    AutoConfig.for_model(kind, **{**sizes, **config}).save_pretrained(donor)
    donor_tokenizer().save_pretrained(donor)
    with pytest.raises(DonorError, match=message):
        make_text_base(donor, tmp_path / "base")
    assert not (tmp_path / "base").exists()


def test_a_sliding_window_above_the_kept_layers_is_not_in_use(tmp_path):
    donor = tiny_donor(tmp_path / "donor", "qwen2", use_sliding_window=True, sliding_window=4, max_window_layers=2)
    with pytest.raises(DonorError, match="sliding_window"):
        open_donor(donor)
    assert_equal(donor, make_text_base(donor, tmp_path / "base", layers=2, vision=VISION))


@pytest.mark.parametrize("layers", [0, 4])
def test_a_number_of_layers_that_the_model_does_not_have_is_refused(tmp_path, layers):
    with pytest.raises(DonorError, match=f"--layers: found {layers}; expected 1 to 3"):
        make_text_base(tiny_donor(tmp_path / "donor"), tmp_path / "base", layers=layers)


def test_what_is_no_language_model_is_refused(tmp_path, monkeypatch):
    with pytest.raises(DonorError, match="found no language model"):
        open_donor(tmp_path)
    (tmp_path / "notes.txt").write_text("a")
    with pytest.raises(DonorError, match="expected a folder, a hub id, or a file"):
        open_donor(tmp_path / "notes.txt")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DonorError, match=r"missing: gguf, accelerate \(pip install moon3\[gguf\]\)"):
        open_donor(tmp_path / "x.gguf")


def test_a_folder_without_weights_is_refused(tmp_path):
    donor = tiny_donor(tmp_path / "donor")
    (donor / "model.safetensors").unlink()
    with pytest.raises(DonorError, match="the weights cannot be read"):
        make_text_base(donor, tmp_path / "base", vision=VISION)
    assert not (tmp_path / "base").exists()


def test_an_unusable_dtype_or_folder_is_refused(tmp_path):
    donor = tiny_donor(tmp_path / "donor")
    with pytest.raises(OptionError, match="--dtype: found 'int8'"):
        make_text_base(donor, tmp_path / "base", dtype="int8")
    with pytest.raises(OutputError, match="expected a new or empty folder"):
        make_text_base(donor, donor)


@pytest.mark.parametrize("tied", [True, False])
def test_a_gguf_file_is_as_good_as_its_folder(tmp_path, tied):
    pytest.importorskip("gguf", reason="GGUF files need the package gguf")
    donor = tiny_donor(tmp_path / "donor", "qwen2", spare=0, tie_word_embeddings=tied)
    file = write_gguf(donor, tmp_path / "tiny.gguf")
    base = make_text_base(file, tmp_path / "base", vision=VISION)
    assert_equal(tmp_path, base, gguf_file="tiny.gguf")
    ours, theirs = (AutoModelForImageTextToText.from_pretrained(base), AutoModelForCausalLM.from_pretrained(donor))
    ids = AutoTokenizer.from_pretrained(base)("red shoes")["input_ids"]
    torch.testing.assert_close(hidden_states(ours, ids)[0], hidden_states(theirs, ids)[0], rtol=0, atol=1e-5)
    with pytest.raises(DonorError, match="found no file"):
        open_donor(tmp_path / "other.gguf")


def test_the_dtype_is_that_of_the_model_or_the_chosen_one(tmp_path):
    donor = tiny_donor(tmp_path / "donor", dtype=torch.bfloat16)
    for dtype, expected in ((None, torch.bfloat16), ("float16", torch.float16)):
        base = make_text_base(donor, tmp_path / "base", vision=VISION, dtype=dtype, overwrite=True)
        assert {tensor.dtype for tensor in load_file(base / "model.safetensors").values()} == {expected}


@pytest.mark.parametrize("preset", ["moon1", "moon2", "moon3"])
def test_upcycled_moons_equal_the_base_with_and_without_a_picture(tmp_path, preset):
    from pictures import noise

    base = make_text_base(tiny_donor(tmp_path / "donor"), tmp_path / "base", vision=VISION)
    folder = upcycle(base, tmp_path / "moon", preset=preset)
    model, moon = (
        AutoModelForImageTextToText.from_pretrained(base).eval(),
        MoonForConditionalGeneration.from_pretrained(folder).eval(),
    )
    processor = MoonProcessor.from_pretrained(folder)
    text = "<|vision_start|><|image_pad|><|vision_end|>red shoes"
    for batch in (
        processor(text=["red shoes for women", "a mug"], padding=True, return_tensors="pt"),
        processor(text=[text], images=[noise(64, 56, 0)], return_tensors="pt"),
    ):
        with torch.no_grad():
            found, expected = (one(**batch, output_hidden_states=True).hidden_states[-1] for one in (moon, model))
        attended = batch["attention_mask"].bool()
        torch.testing.assert_close(found[attended], expected[attended], rtol=1e-5, atol=1e-5)


def test_the_tower_of_a_checkpoint_is_taken_over(tmp_path, tiny_base):
    donor = tiny_donor(tmp_path / "donor", tie_word_embeddings=False)
    for width, random in ((64, []), (96, ["merger.mlp.2.bias", "merger.mlp.2.weight"])):
        seeing = tiny_base("qwen2_5_vl", hidden_size=width)
        base = make_text_base(donor, tmp_path / "base", vision=seeing, overwrite=True)
        of_seeing, of_base = (load_file(folder / "model.safetensors") for folder in (seeing, base))
        changed = []
        towers = [name for name in of_base if ".visual." in name or name.startswith("visual.")]
        assert len(towers) > 20
        for name in towers:
            if of_seeing[name].shape != of_base[name].shape or not torch.equal(of_seeing[name], of_base[name]):
                changed.append(name.partition("visual.")[2])
        assert sorted(changed) == random
        assert_equal(donor, base)
        expected = json.loads((seeing / "preprocessor_config.json").read_text())
        assert json.loads((base / "preprocessor_config.json").read_text()) == expected
        assert ("merger.mlp.2.weight" in (base / "README.md").read_text()) == bool(random)


def test_an_unusable_tower_is_refused(tmp_path, tiny_base):
    donor = tiny_donor(tmp_path / "donor")
    with pytest.raises(OptionError, match="--vision: found width; expected hidden_size, depth"):
        make_text_base(donor, tmp_path / "base", vision={"width": 3})
    with pytest.raises(OptionError, match="vision_hidden_size: found 33; expected a positive multiple of 32"):
        make_text_base(donor, tmp_path / "base", vision={"hidden_size": 33})
    with pytest.raises(OptionError, match="found model type 'qwen3_vl'; expected a Qwen2.5-VL checkpoint"):
        make_text_base(donor, tmp_path / "base", vision=tiny_base("qwen3_vl"))
    with pytest.raises(OptionError, match="found no config.json and no preprocessor_config.json"):
        make_text_base(donor, tmp_path / "base", vision=tmp_path)


def test_the_licence_of_the_language_model_is_that_of_the_base(tmp_path):
    donor = tiny_donor(tmp_path / "donor")
    (donor / "README.md").write_text("---\nlicense: mit\n---\n# Tiny\n")
    base = make_text_base(donor, tmp_path / "base", vision=VISION)
    assert front_matter((base / "README.md").read_text())["license"] == "mit"
    upcycle(base, tmp_path / "moon")
    assert front_matter((tmp_path / "moon" / "README.md").read_text())["license"] == "mit"
