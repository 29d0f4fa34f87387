"""What every Moon variant promises, whatever its backbone and read-out."""

import pytest
import torch
from pictures import noise
from records import PRODUCTS
from transformers import PreTrainedModel

from modeling_moon import MoonForConditionalGeneration, MoonModel
from modeling_moon.tokens_moon import aspect_ids_from_markers
from processing_moon import MoonProcessor

SETTINGS = [
    {},
    {"readout": "emb"},
    {"readout": "last"},
    {"moe_layers": [1]},
    {"expert_routing": "none"},
    {"preset": "moon2"},
    {"preset": "moon2", "num_experts_per_token": 1, "moe_layers": [0]},
    {"preset": "moon3", "matryoshka_dims": [8, 32]},
    {"preset": "moon3", "fusion": False, "fire_layers": [0], "num_experts_per_token": 1},
    {"preset": "moon3", "expert_routing": "none", "fire_layers": None},
    {"preset": "moon3", "fusion_source": "raw"},
    {"preset": "moon3", "three_levels": True},
    {"preset": "moon3", "three_levels": True, "fire_vision_blocks": [0, 1, 3]},
]
VARIANTS = [
    pytest.param((backbone, moon), id=f"{backbone}-{'-'.join(f'{k}={v}' for k, v in moon.items()) or 'moon1'}")
    for backbone in ("qwen3_vl", "qwen2_5_vl")
    for moon in SETTINGS
]


@pytest.fixture(scope="module", params=VARIANTS)
def pair(request, tiny_moon):
    """Folder, model and processor of one variant."""
    backbone, moon = request.param
    folder = tiny_moon(backbone, trained=True, **moon)
    return folder, MoonModel.from_pretrained(folder).eval(), MoonProcessor.from_pretrained(folder)


def embed(model, processor, products=PRODUCTS, **arguments):
    with torch.no_grad():
        return model(**processor(products=products, return_tensors="pt", **arguments)).embeddings


def test_same_input_gives_the_same_unit_vectors(pair):
    _, model, processor = pair
    first, second = embed(model, processor), embed(model, processor)
    assert torch.equal(first, second)
    torch.testing.assert_close(first.norm(dim=-1), torch.ones(4))
    assert (first @ first.T).triu(1).max() < 0.99999


def test_a_row_ignores_its_neighbours_and_its_padding(pair):
    _, model, processor = pair
    together = embed(model, processor, padding_side="left")
    torch.testing.assert_close(embed(model, processor, padding_side="right"), together, rtol=1e-5, atol=1e-5)
    alone = torch.cat([embed(model, processor, [product]) for product in PRODUCTS])
    torch.testing.assert_close(alone, together, rtol=1e-5, atol=1e-5)
    backwards = embed(model, processor, PRODUCTS[::-1]).flip(0)
    torch.testing.assert_close(backwards, together, rtol=1e-5, atol=1e-5)


def test_eager_attention_and_the_expert_loop_equal_the_fast_kernels(pair):
    folder, model, processor = pair
    slow = MoonModel.from_pretrained(folder, attn_implementation="eager", experts_implementation="eager").eval()
    text_config = slow.vlm.language_model.config
    assert (text_config._attn_implementation, text_config._experts_implementation) == ("eager", "eager")
    assert model.vlm.language_model.config._attn_implementation == "sdpa"
    assert model.vlm.language_model.config._experts_implementation == "grouped_mm"
    torch.testing.assert_close(embed(slow, processor), embed(model, processor), rtol=1e-5, atol=1e-5)


def test_the_attention_implementation_is_changed_again_and_again_at_every_depth(tiny_moon):
    model = MoonModel.from_pretrained(tiny_moon("qwen3_vl"))
    parts = {id(part.config): part.config for part in model.modules() if isinstance(part, PreTrainedModel)}
    assert len(parts) == 4  # Moon, the base, its text model and its vision tower
    for implementation in ("eager", "sdpa", "eager"):
        model.set_attn_implementation(implementation)
        assert {config._attn_implementation for config in parts.values()} == {implementation}
        assert not any("_attn_was_changed" in vars(config) for config in parts.values())


def test_every_parameter_learns(pair):
    folder, _, processor = pair
    model = MoonModel.from_pretrained(folder).train()
    modality = model.config.expert_routing == "modality"
    output = model(**processor(products=PRODUCTS, return_tensors="pt"), output_router_stats=modality)
    loss = (output.embeddings @ torch.randn(output.embeddings.shape[1], 3)).square().sum()
    if modality:  # preferences learn from the weights of the objectives
        loss = loss + model.objective_weights(output.expert_gates, torch.tensor([0, 1, 2, 2])) @ torch.arange(3.0)
    loss.backward()
    dead = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    # Keys have no bias that matters: a constant added to every key cancels in the softmax.
    assert [name for name in dead if not name.endswith("k_proj.bias")] == []


def test_gradient_checkpointing_changes_nothing(pair):
    folder, _, processor = pair
    batch = processor(products=PRODUCTS, return_tensors="pt")
    gradients = []
    for checkpointing in (False, True):
        model = MoonModel.from_pretrained(folder).train()
        if checkpointing:
            model.gradient_checkpointing_enable()
            assert any(getattr(module, "gradient_checkpointing", False) for module in model.modules())
        model(**batch).embeddings[:, 0].sum().backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(
            gradients[1][name], gradient, rtol=1e-5, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}"
        )


def test_saved_loaded_saved_is_stable(pair, tmp_path):
    _, model, processor = pair
    vectors = embed(model, processor)
    for generation in ("first", "second"):
        model.save_pretrained(tmp_path / generation)
        processor.save_pretrained(tmp_path / generation)
        model = MoonModel.from_pretrained(tmp_path / generation).eval()
        processor = MoonProcessor.from_pretrained(tmp_path / generation)
        assert torch.equal(embed(model, processor), vectors)
    names = [(path.name, path.read_bytes()) for path in sorted((tmp_path / "first").iterdir()) if path.is_file()]
    assert names == [
        (path.name, path.read_bytes()) for path in sorted((tmp_path / "second").iterdir()) if path.is_file()
    ]


def test_both_auto_classes_read_the_same_weights(pair):
    folder, model, _ = pair
    writer, loading = MoonForConditionalGeneration.from_pretrained(folder, output_loading_info=True)
    assert not loading["missing_keys"]
    assert not loading["unexpected_keys"]
    for name, tensor in writer.model.state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name]), name


@pytest.mark.parametrize("strategy", [{}, {"num_beams": 2}])
def test_generation_with_a_cache_equals_generation_without(pair, strategy):
    folder, _, processor = pair
    writer = MoonForConditionalGeneration.from_pretrained(folder).eval()
    open_span = "<|attribute_start|>colour: red" if processor.markers else "colour: red"
    texts = [f"<|vision_start|><|image_pad|><|vision_end|>shoes {open_span}", "a blue mug"]
    batch = processor(text=texts, images=[[noise(64, 64)], []], padding=True, padding_side="left", return_tensors="pt")
    outputs = [
        writer.generate(**batch, max_new_tokens=8, min_new_tokens=8, do_sample=False, use_cache=cache, **strategy)
        for cache in (True, False)
    ]
    assert outputs[0].shape[1] == batch["input_ids"].shape[1] + 8
    assert torch.equal(*outputs)


def test_several_samples_of_a_row_keep_their_pictures(pair):
    folder, _, processor = pair
    writer = MoonForConditionalGeneration.from_pretrained(folder).eval()
    vision = "<|vision_start|><|image_pad|><|vision_end|>"
    texts = [f"{vision}shoes", "a blue mug", f"{vision}{vision}bag"]
    images = [[noise(64, 64)], [], [noise(96, 64, 1), noise(64, 64, 2)]]
    batch = processor(text=texts, images=images, padding=True, padding_side="left", return_tensors="pt")
    one = writer.generate(**batch, max_new_tokens=4, min_new_tokens=4, num_beams=3)
    several = writer.generate(**batch, max_new_tokens=4, min_new_tokens=4, num_beams=3, num_return_sequences=3)
    assert torch.equal(several[::3], one)


def test_router_statistics_count_attended_tokens_only(pair):
    _, model, processor = pair
    config = model.config
    batch = processor(products=PRODUCTS, return_tensors="pt")
    with torch.no_grad():
        output = model(**batch, output_router_stats=True)
        assert model(**batch).expert_load is None
    if not config.mixture_layers:
        assert (output.expert_load, output.expert_gates, output.router_loss) == (None, None, None)
        return
    assert output.expert_load.shape == (len(config.mixture_layers), config.num_experts)
    assert output.expert_gates.shape == (4, len(config.mixture_layers), config.num_experts)
    torch.testing.assert_close(output.expert_gates.sum(dim=-1), torch.ones(4, len(config.mixture_layers)))
    free = output.expert_load[:, : config.num_free_experts]
    torch.testing.assert_close(free.sum(dim=1), torch.full((len(free),), float(config.num_experts_per_token)))
    assert 0.9 < output.router_loss < config.num_free_experts + 1e-5
    if not config.reads_aspects:
        return
    aspects = aspect_ids_from_markers(batch["input_ids"], config)
    attended = batch["attention_mask"].sum()
    for number, column in ((1, 2), (2, 3)):
        share = (aspects == number).sum() / attended
        torch.testing.assert_close(output.expert_load[:, column], share.expand(len(free)))
        assert (share > 0) == processor.markers


def test_packing_the_rows_changes_nothing(pair):
    _, model, processor = pair
    for side in ("left", "right"):
        batch = processor(products=PRODUCTS, return_tensors="pt", padding_side=side)
        with torch.no_grad():
            apart = model(**batch, output_router_stats=True)
            packed = model(**batch, packed=True, output_router_stats=True)
        attended = batch["attention_mask"].bool()
        torch.testing.assert_close(
            packed.last_hidden_state[attended], apart.last_hidden_state[attended], rtol=1e-5, atol=1e-5
        )
        for name in ("embeddings", "modality_gates", "expert_load", "expert_gates", "router_loss"):
            torch.testing.assert_close(packed.get(name), apart.get(name), rtol=1e-5, atol=1e-5)


def test_packing_learns_the_same(pair):
    folder, _, processor = pair
    batch = processor(products=PRODUCTS, return_tensors="pt")
    gradients = []
    for packed in (False, True):
        model = MoonModel.from_pretrained(folder).train()
        model.gradient_checkpointing_enable()
        model(**batch, packed=packed).embeddings[:, 0].sum().backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        scale = gradient.abs().max().item()
        torch.testing.assert_close(
            gradients[1][name],
            gradient,
            rtol=1e-4,
            atol=1e-5 * scale + 1e-6,
            msg=lambda text, name=name: f"{name}: {text}",
        )


def test_what_cannot_be_packed_is_refused(pair):
    _, model, processor = pair
    batch = processor(products=PRODUCTS, return_tensors="pt")
    for more in ({"use_cache": True}, {"output_hidden_states": True}, {"attention_mask": None}):
        with pytest.raises(ValueError, match="packed=True: expected a mask"):
            model(**{**batch, **more}, packed=True)


def test_prefixes_are_the_vector_cut_and_normalised(pair):
    _, model, processor = pair
    with torch.no_grad():
        output = model(**processor(products=PRODUCTS, return_tensors="pt"))
    if model.config.matryoshka_dims is None:
        assert output.matryoshka_embeddings is None
        return
    for dim, prefix in zip(model.config.matryoshka_dims, output.matryoshka_embeddings, strict=True):
        expected = output.embeddings[:, :dim] / output.embeddings[:, :dim].norm(dim=1, keepdim=True)
        torch.testing.assert_close(prefix, expected)


def test_a_row_without_a_token_to_read_is_refused(pair):
    folder, model, processor = pair
    batch = processor(products=PRODUCTS, return_tensors="pt")
    batch["attention_mask"][2] = 0
    writer = MoonForConditionalGeneration.from_pretrained(folder).eval()
    for one, options in ((model, {}), (model, {"output_embeddings": True}), (writer, {"output_embeddings": True})):
        with pytest.raises(ValueError, match=r"rows \[2\] of the batch have no"):
            one(**batch, **options)
    with pytest.raises(ValueError, match=r"rows \[2\] of the batch have no"):
        model.embed(batch, processor=processor)


def test_the_writer_returns_the_expert_load_too(pair):
    folder, model, processor = pair
    writer = MoonForConditionalGeneration.from_pretrained(folder).eval()
    batch = processor(products=PRODUCTS, return_tensors="pt")
    with torch.no_grad():
        written, encoded = (one(**batch, output_router_stats=True) for one in (writer, model))
    for name in ("expert_load", "router_loss"):
        assert (getattr(written, name) is None) == (not model.config.mixture_layers)
        torch.testing.assert_close(getattr(written, name), getattr(encoded, name))


def test_fresh_experts_and_routers_have_the_spread_of_the_configuration(pair):
    _, model, _ = pair
    config = type(model.config).from_dict(model.config.to_dict() | {"initializer_range": 0.5})
    for name, parameter in MoonModel(config).named_parameters():
        if ".experts." in name or ".router." in name:
            assert 0.4 < parameter.std() < 0.6, name
        if name.endswith((".preference", ".fire.scale", "fusion.o_proj.weight")):
            assert not parameter.any(), name


def test_generating_from_embeddings_is_refused_where_markers_matter(pair):
    folder, model, processor = pair
    writer = MoonForConditionalGeneration.from_pretrained(folder).eval()
    embeddings = writer.get_input_embeddings()(processor(text=["a mug"], return_tensors="pt")["input_ids"])
    if model.config.reads_aspects:
        with pytest.raises(ValueError, match="found inputs_embeds; expected input_ids"):
            writer.generate(inputs_embeds=embeddings, max_new_tokens=2)
    else:
        assert writer.generate(inputs_embeds=embeddings, max_new_tokens=2, min_new_tokens=2).shape == (1, 2)


def test_one_configuration_serves_several_models(pair):
    _, model, _ = pair
    twins = [MoonModel._from_config(model.config) for _ in range(2)]
    assert {twin.vlm.language_model.config._experts_implementation for twin in twins} == {"grouped_mm"}
