"""An upcycled Moon computes what its base computed: hidden states, logits, and the vectors of embedding bases."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from pictures import noise
from torch.nn import functional
from transformers import AutoConfig, AutoModelForImageTextToText, AutoTokenizer

from modeling_moon import MoonForConditionalGeneration, MoonModel
from modeling_moon.configuration_moon import PRESETS
from modeling_moon.tokens_moon import content_tokens
from processing_moon import MoonProcessor
from product_data.outputs import OutputError
from training.model.checkpoint import save_moon
from training.model.upcycle import TOKEN_FIELDS, UpcycleError, moon_name, upcycle

BACKBONES = ("qwen3_vl", "qwen2_5_vl")
VISION = "<|vision_start|><|image_pad|><|vision_end|>"


def pictures(count):
    sizes = [(64, 70), (128, 96), (64, 64)]
    return [noise(*sizes[seed], seed) for seed in range(count)]


def batches(processor):
    one, two, three = pictures(3)
    yield "text", processor(text=["red shoes for women", "a mug"], padding=True, return_tensors="pt")
    yield "one image", processor(text=[f"{VISION}red shoes"], images=[one], padding=True, return_tensors="pt")
    yield (
        "two images",
        processor(text=[f"{VISION}{VISION}red shoes"], images=[[one, two]], padding=True, return_tensors="pt"),
    )
    texts = [f"{VISION}{VISION} a bag", "a long text about brown leather tote bags", f"{VISION}shoes"]
    yield "mixed", processor(text=texts, images=[[one, two], [], [three]], padding=True, return_tensors="pt")


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("preset", ["moon1", "moon2", "moon3"])
@pytest.mark.parametrize("backbone", BACKBONES)
def test_hidden_states_and_logits_equal_the_base(tiny_base, tiny_moon, backbone, preset, tied):
    base = AutoModelForImageTextToText.from_pretrained(tiny_base(backbone, tie_word_embeddings=tied)).eval()
    folder = tiny_moon(backbone, tie_word_embeddings=tied, preset=preset)
    moon = MoonForConditionalGeneration.from_pretrained(folder).eval()
    processor = MoonProcessor.from_pretrained(folder)
    known = base.config.text_config.vocab_size - 16  # the spare rows hold Moon's new tokens
    for name, batch in batches(processor):
        with torch.no_grad():
            expected = base(**batch, output_hidden_states=True)
            found = moon(**batch, output_hidden_states=True)
        attended = batch["attention_mask"].bool()
        assert len(found.hidden_states) == len(expected.hidden_states) == 3
        for ours, theirs in zip(found.hidden_states, expected.hidden_states, strict=True):
            torch.testing.assert_close(ours[attended], theirs[attended], rtol=1e-5, atol=1e-5, msg=name)
        torch.testing.assert_close(
            found.logits[attended][:, :known], expected.logits[attended][:, :known], rtol=1e-5, atol=1e-5, msg=name
        )


@pytest.mark.parametrize("preset", ["moon1", "moon3"])
@pytest.mark.parametrize("backbone", BACKBONES)
def test_marked_text_still_equals_the_base(tiny_base, tiny_moon, backbone, preset):
    folder = tiny_moon(backbone, preset=preset)
    base = AutoModelForImageTextToText.from_pretrained(tiny_base(backbone)).eval()
    moon = MoonForConditionalGeneration.from_pretrained(folder).eval()
    processor = MoonProcessor.from_pretrained(folder)
    base.get_input_embeddings().weight.data.copy_(moon.get_input_embeddings().weight.data)
    record = {"title": "red shoes", "category": ["Shoes"], "attributes": {"colour": "red"}, "images": pictures(1)}
    batch = processor(products=[record], return_tensors="pt")
    with torch.no_grad():
        load = moon.model(**batch, output_router_stats=True).expert_load
        torch.testing.assert_close(moon(**batch).logits, base(**batch).logits, rtol=1e-5, atol=1e-5)
    assert (load[:, :2] == 1).all()
    assert (load[:, 2:] > 0).all()


@pytest.mark.parametrize("backbone", BACKBONES)
def test_a_fresh_fusion_of_either_source_leaves_the_vector_as_it_is_without(tiny_moon, backbone):
    folders = {source: tiny_moon(backbone, preset="moon3", fusion_source=source) for source in ("states", "raw")} | {
        "none": tiny_moon(backbone, preset="moon3", fusion=False)
    }
    for name, batch in batches(MoonProcessor.from_pretrained(folders["raw"])):
        batch["input_ids"][:, -1] = MoonModel.config_class.from_pretrained(folders["raw"]).emb_token_id
        batch["attention_mask"][:, -1] = 1
        found = {}
        for source, folder in folders.items():
            with torch.no_grad():
                found[source] = MoonModel.from_pretrained(folder).eval()(**batch).embeddings
        torch.testing.assert_close(found["raw"], found["none"], rtol=1e-5, atol=1e-6, msg=name)
        torch.testing.assert_close(found["states"], found["none"], rtol=1e-5, atol=1e-6, msg=name)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_the_fresh_vector_is_the_mean_of_the_base_states_of_the_item_cut_to_size(tiny_base, tiny_moon, backbone):
    base = AutoModelForImageTextToText.from_pretrained(tiny_base(backbone)).eval()
    moon = MoonModel.from_pretrained(tiny_moon(backbone)).eval()
    for _, batch in batches(MoonProcessor.from_pretrained(tiny_moon(backbone))):
        with torch.no_grad():
            states = base.model(**batch).last_hidden_state
            vectors = moon(**batch).embeddings
        for row, ids in enumerate(batch["input_ids"]):
            expected = functional.normalize(
                states[row, content_tokens(ids[None], moon.config)[0]].mean(dim=0)[:32], dim=0
            )
            torch.testing.assert_close(vectors[row], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("padding_side", ["left", "right"])
def test_vectors_of_an_embedding_base_equal_its_own_recipe(tiny_base, tmp_path, padding_side):
    """Qwen3-VL-Embedding's recipe: instruction as system message, last attended token, L2, first dimensions."""
    base_folder = tiny_base("qwen3_vl", seed=5)
    folder = upcycle(base_folder, tmp_path / "moon", readout="last", embedding_dim=24)
    tokenizer = AutoTokenizer.from_pretrained(base_folder)
    base = AutoModelForImageTextToText.from_pretrained(base_folder).eval()
    moon, processor = MoonModel.from_pretrained(folder).eval(), MoonProcessor.from_pretrained(folder)
    image = pictures(2)[1]
    records = [{"text": "red shoes", "image": image}, {"text": "a brown bag"}, {"image": image}]
    for instruction, said in [("Find the product", "Find the product."), (None, "Represent the user's input.")]:
        batch = processor(queries=records, instruction=instruction, padding_side=padding_side, return_tensors="pt")
        with torch.no_grad():
            vectors = moon(**batch).embeddings
        for record, vector in zip(records, vectors, strict=True):
            content = [{"type": "image"}] if "image" in record else []
            content += [{"type": "text", "text": record["text"]}] if "text" in record else []
            chat = [
                {"role": "system", "content": [{"type": "text", "text": said}]},
                {"role": "user", "content": content},
            ]
            prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
            inputs = {}
            if "image" in record:
                inputs = dict(processor.image_processor([image], return_tensors="pt"))
                tokens = int(inputs["image_grid_thw"].prod()) // 4
                prompt = prompt.replace("<|image_pad|>", "<|image_pad|>" * tokens)
            inputs |= dict(tokenizer(prompt, return_tensors="pt"))
            inputs["mm_token_type_ids"] = (inputs["input_ids"] == base.config.image_token_id).long()
            with torch.no_grad():
                state = base.model(**inputs).last_hidden_state[0, -1]
            expected = functional.normalize(functional.normalize(state, dim=0)[:24], dim=0)
            torch.testing.assert_close(vector, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("preset", "count"), [("moon1", 5), ("moon2", 5), ("moon3", 9)])
def test_new_tokens_leave_every_other_embedding_untouched(tiny_base, tiny_moon, preset, count):
    base = AutoModelForImageTextToText.from_pretrained(tiny_base("qwen3_vl")).get_input_embeddings().weight
    moon = MoonModel.from_pretrained(tiny_moon("qwen3_vl", preset=preset))
    new = [token for field in TOKEN_FIELDS if (token := getattr(moon.config, field)) is not None]
    weight = moon.get_input_embeddings().weight
    assert len(set(new)) == count
    kept = [row for row in range(base.shape[0]) if row not in new]
    assert torch.equal(weight[kept], base[kept])
    torch.testing.assert_close(weight[new], base[: min(new)].mean(dim=0).expand(count, -1))


def test_a_token_that_the_base_knows_keeps_its_embedding(tiny_base, tmp_path):
    """Qwen3's tokenizer has <think> and </think>."""
    known = tmp_path / "base"
    shutil.copytree(tiny_base("qwen3_vl"), known)
    tokenizer = AutoTokenizer.from_pretrained(known)
    tokenizer.add_tokens(["<think>", "</think>"])
    tokenizer.save_pretrained(known)
    base = AutoModelForImageTextToText.from_pretrained(known).get_input_embeddings().weight
    moon = MoonModel.from_pretrained(upcycle(known, tmp_path / "moon", preset="moon3", embedding_dim=32))
    ids = [moon.config.think_start_token_id, moon.config.think_end_token_id]
    assert ids == tokenizer.convert_tokens_to_ids(["<think>", "</think>"])
    assert torch.equal(moon.get_input_embeddings().weight[ids], base[ids])


def test_an_embedding_matrix_without_spare_rows_grows(tiny_base, tmp_path):
    folder = tiny_base("qwen3_vl", spare_embeddings=0, tie_word_embeddings=False)
    base = AutoModelForImageTextToText.from_pretrained(folder)
    moon = MoonForConditionalGeneration.from_pretrained(upcycle(folder, tmp_path / "moon", embedding_dim=32))
    assert moon.config.vocab_size == base.config.text_config.vocab_size + 5
    old = base.config.text_config.vocab_size
    assert torch.equal(moon.get_input_embeddings().weight[:old], base.get_input_embeddings().weight)
    assert torch.equal(moon.lm_head.weight[:old], base.lm_head.weight)


def test_sharded_bf16_base_becomes_the_same_moon_in_shards(tiny_base, tmp_path):
    folder = tiny_base("qwen2_5_vl")
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.bfloat16)
    sharded = tmp_path / "base"
    model.save_pretrained(sharded, max_shard_size="100KB")
    for name in ("tokenizer.json", "tokenizer_config.json", "preprocessor_config.json", "chat_template.jinja"):
        (sharded / name).write_bytes((folder / name).read_bytes())
    assert (sharded / "model.safetensors.index.json").exists()
    whole = MoonForConditionalGeneration.from_pretrained(
        upcycle(folder, tmp_path / "whole", embedding_dim=32, dtype="bfloat16"), dtype="auto"
    )
    out = upcycle(sharded, tmp_path / "parts", embedding_dim=32, max_shard_gigabytes=1e-4)
    weight_map = json.loads((out / "model.safetensors.index.json").read_text())["weight_map"]
    assert len(set(weight_map.values())) > 2
    parts = MoonForConditionalGeneration.from_pretrained(out, dtype="auto")
    assert parts.dtype == torch.bfloat16
    expected = whole.state_dict()
    for name, tensor in parts.state_dict().items():
        if "embed_tokens" in name or "lm_head" in name:  # the mean row was rounded from other digits
            torch.testing.assert_close(tensor, expected[name])
        elif "router" not in name:
            assert torch.equal(tensor, expected[name]), name


@pytest.mark.parametrize("preset", ["moon1", "moon2", "moon3"])
def test_a_checkpoint_with_every_tensor_of_qwen3_vl_2b_loads_with_none_missing_and_none_left(
    tiny_base, tmp_path, preset
):
    """As deep as the real one, with narrow layers and random weights, in shards with an index."""
    config = AutoConfig.from_pretrained(tiny_base("qwen3_vl"))
    config.text_config.num_hidden_layers = 28
    config.vision_config.depth = 24
    config.vision_config.deepstack_visual_indexes = [5, 11, 17]
    base = tmp_path / "base"
    AutoModelForImageTextToText.from_config(config).save_pretrained(base, max_shard_size="500KB")
    for name in ("tokenizer.json", "tokenizer_config.json", "preprocessor_config.json", "chat_template.jinja"):
        (base / name).write_bytes((tiny_base("qwen3_vl") / name).read_bytes())
    index = json.loads((base / "model.safetensors.index.json").read_text())["weight_map"]
    assert set(index) == set(QWEN3_VL_2B)
    folder = upcycle(base, tmp_path / "moon", preset=preset, embedding_dim=32)
    for kind in (MoonForConditionalGeneration, MoonModel):
        _, loading = kind.from_pretrained(folder, output_loading_info=True)
        assert not loading["missing_keys"]
        assert not loading["unexpected_keys"]
        assert not loading["mismatched_keys"]


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("model.language_model.layers.0.mlp.up_proj.weight", "model.vlm.language_model.layers.0.mlp.up_proj.weight"),
        ("language_model.norm.weight", "model.vlm.language_model.norm.weight"),
        ("model.layers.3.self_attn.q_proj.bias", "model.vlm.language_model.layers.3.self_attn.q_proj.bias"),
        ("model.embed_tokens.weight", "model.vlm.language_model.embed_tokens.weight"),
        ("visual.blocks.0.norm1.weight", "model.vlm.visual.blocks.0.norm1.weight"),
        ("model.visual.merger.norm.weight", "model.vlm.visual.merger.norm.weight"),
        ("lm_head.weight", "lm_head.weight"),
    ],
)
def test_names_of_old_and_new_checkpoints_are_known(theirs, ours):
    assert moon_name(theirs) == ours


def test_another_architecture_is_refused_by_name(tmp_path):
    AutoConfig.for_model("clip").save_pretrained(tmp_path / "clip")
    with pytest.raises(UpcycleError, match="cannot upcycle model type 'clip'; expected one of qwen3_vl, qwen2_5_vl"):
        upcycle(tmp_path / "clip", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_base_with_a_missing_tensor_is_refused_and_leaves_nothing(tiny_base, tmp_path):
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "base"
    folder.mkdir()
    for file in tiny_base("qwen3_vl").iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    tensors = load_file(folder / "model.safetensors")
    removed = tensors.pop("model.language_model.norm.weight")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UpcycleError, match="base: 1 tensors are missing, such as model.vlm.language_model.norm.weight"):
        upcycle(folder, tmp_path / "out", embedding_dim=32)
    save_file(
        tensors | {"model.language_model.norm.weight": removed[:3].clone()},
        folder / "model.safetensors",
        metadata={"format": "pt"},
    )
    with pytest.raises(UpcycleError, match=r"norm.weight' of shape \(3,\); expected \(64,\)"):
        upcycle(folder, tmp_path / "out", embedding_dim=32)
    assert [path.name for path in tmp_path.iterdir()] == ["base"]


def test_an_existing_folder_is_kept_unless_told_otherwise(tiny_base, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("kept")
    with pytest.raises(OutputError, match="overwrite"):
        upcycle(tiny_base("qwen3_vl"), tmp_path / "out", embedding_dim=32)
    assert (tmp_path / "out" / "mine.txt").read_text() == "kept"


def copy_of(folder, target, change):
    """A copy of a checkpoint with changed tensors."""
    from safetensors.torch import load_file, save_file

    target.mkdir()
    for file in folder.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    save_file(change(load_file(folder / "model.safetensors")), target / "model.safetensors", metadata={"format": "pt"})
    return target


def test_an_untied_base_without_an_output_layer_uses_its_embeddings(tiny_base, tmp_path, capsys):
    source = tiny_base("qwen3_vl", tie_word_embeddings=False)
    base = copy_of(source, tmp_path / "base", lambda t: {n: v for n, v in t.items() if n != "lm_head.weight"})
    moon = MoonForConditionalGeneration.from_pretrained(upcycle(base, tmp_path / "moon", embedding_dim=32))
    assert "does not have an output layer" in capsys.readouterr().out
    assert moon.lm_head.weight is moon.get_input_embeddings().weight


@pytest.mark.parametrize("dtype", [None, "float32", "bfloat16"])
def test_one_dtype_holds_for_the_whole_checkpoint(tiny_base, tmp_path, dtype):
    base = copy_of(tiny_base("qwen3_vl"), tmp_path / "base", lambda t: {n: v.bfloat16() for n, v in t.items()})
    moon = MoonModel.from_pretrained(upcycle(base, tmp_path / "moon", embedding_dim=32, dtype=dtype), dtype="auto")
    wanted = torch.float32 if dtype == "float32" else torch.bfloat16
    assert {parameter.dtype for parameter in moon.parameters()} == {wanted}
    assert {parameter.dtype for parameter in MoonModel._from_config(moon.config).parameters()} == {wanted}


@pytest.mark.parametrize("tied", [True, False])
def test_a_trained_encoder_is_saved_with_what_it_needs_to_write(tiny_base, tiny_moon, tmp_path, tied):
    start = tiny_moon("qwen3_vl", tie_word_embeddings=tied)
    model, processor = MoonModel.from_pretrained(start), MoonProcessor.from_pretrained(start)
    model.config.embedding_dim = 32
    model.projection.weight.data.mul_(2)
    save_moon(model, processor, tmp_path / "saved", lm_head_from=start)
    saved, loading = MoonForConditionalGeneration.from_pretrained(tmp_path / "saved", output_loading_info=True)
    donor = MoonForConditionalGeneration.from_pretrained(start)
    assert not loading["missing_keys"]
    assert torch.equal(saved.lm_head.weight, donor.lm_head.weight)
    assert torch.equal(saved.model.projection.weight, model.projection.weight)
    assert saved.generation_config.eos_token_id == donor.generation_config.eos_token_id is not None
    if not tied:
        with pytest.raises(ValueError, match="lm_head_from: found None"):
            save_moon(model, processor, tmp_path / "other")


# Sizes as the public configurations of Qwen3-VL-2B-Instruct and Qwen2.5-VL-3B-Instruct give them.
FULL_SIZES = {
    "qwen3_vl": {
        "text_config": {
            "vocab_size": 151936,
            "hidden_size": 2048,
            "intermediate_size": 6144,
            "num_hidden_layers": 28,
            "num_attention_heads": 16,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "rope_parameters": {"rope_type": "default", "rope_theta": 5e6, "mrope_section": [24, 20, 20]},
        },
        "vision_config": {
            "depth": 24,
            "hidden_size": 1024,
            "intermediate_size": 4096,
            "num_heads": 16,
            "out_hidden_size": 2048,
            "deepstack_visual_indexes": [5, 11, 17],
        },
    },
    "qwen2_5_vl": {
        "text_config": {
            "vocab_size": 151936,
            "hidden_size": 2048,
            "intermediate_size": 11008,
            "num_hidden_layers": 36,
            "num_attention_heads": 16,
            "num_key_value_heads": 2,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
        },
        "vision_config": {"depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "out_hidden_size": 2048},
    },
}


# Names and shapes of Qwen3-VL-2B-Instruct's 625 tensors, made of its public configuration.
QWEN3_VL_2B = json.loads((Path(__file__).with_name("qwen3_vl_2b_tensors.json")).read_text())


@pytest.mark.parametrize("preset", ["moon1", "moon2", "moon3"])
@pytest.mark.parametrize("names", ["new", "old"])
@pytest.mark.parametrize("backbone", BACKBONES)
def test_every_tensor_of_a_full_size_base_has_its_place_and_none_is_left(monkeypatch, backbone, names, preset):
    from training.model import upcycle as module

    vlm_config = AutoConfig.for_model(backbone, **FULL_SIZES[backbone], tie_word_embeddings=True)
    config = PRESETS[preset](vlm_config, **dict(zip(TOKEN_FIELDS, range(151669, 151678), strict=True)))
    with torch.device("meta"):
        base = AutoModelForImageTextToText.from_config(vlm_config)
    state = {name: tensor for name, tensor in base.state_dict().items() if name != "lm_head.weight"}
    if names == "old":  # as the first Qwen2-VL repositories have them
        state = {
            name.replace("model.language_model.", "model.").replace("model.visual.", "visual."): tensor
            for name, tensor in state.items()
        }
    monkeypatch.setattr(module, "base_tensors", lambda folder: ((moon_name(n), t) for n, t in state.items()))
    if (backbone, names) == ("qwen3_vl", "new"):
        assert {name: list(tensor.shape) for name, tensor in state.items()} == QWEN3_VL_2B
    made = module._moon_tensors(Path("base"), config, config.vocab_size, list(range(151669, 151678)), seed=0)
    found = {name: tuple(tensor.shape) for name, tensor in made}
    assert found == module._expected_shapes(config)
    assert len(found) > 600
