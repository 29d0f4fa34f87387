"""LoRA on attention and experts, bf16 autocast, torch.compile, and log-probabilities as GRPO needs them, for every preset."""

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from pictures import noise
from records import SHOES

from modeling_moon import MoonForConditionalGeneration, MoonModel
from processing_moon import MoonProcessor

FEW = [("qwen3_vl", preset) for preset in ("moon1", "moon2", "moon3", "moon3 with three levels")]
FEW += [("qwen2_5_vl", preset) for preset in ("moon3", "moon3 with three blocks")]
MORE = [("qwen2_5_vl", preset) for preset in ("moon1", "moon2", "moon3 with three levels")]
MORE += [("qwen3_vl", "moon3 with three blocks")]
PRESETS = [*FEW, *(pytest.param(pair, marks=pytest.mark.slow) for pair in MORE)]
LEVELS = {
    "moon3 with three levels": {"three_levels": True},
    "moon3 with three blocks": {"three_levels": True, "fire_vision_blocks": [0, 1, 3]},
}


PRODUCTS = [
    SHOES,
    {"title": "a mug without a picture", "category": "Home > Mugs", "attributes": {"colour": "blue"}},
    {"images": noise(64, 128, 3)},
]


@pytest.fixture(scope="module", params=PRESETS, ids=lambda pair: "-".join(pair))
def folder(request, tiny_moon):
    backbone, preset = request.param
    return tiny_moon(backbone, preset=preset.split()[0], trained=True, **LEVELS.get(preset, {}))


def batch_of(folder, **options):
    return MoonProcessor.from_pretrained(folder)(products=PRODUCTS, return_tensors="pt", **options)


def test_lora_on_attention_and_experts_attaches_trains_saves_loads_and_merges(folder, tmp_path):
    batch = batch_of(folder)
    start = MoonModel.from_pretrained(folder).eval()
    with torch.no_grad():
        before = start(**batch).embeddings
    settings = LoraConfig(
        r=4,
        target_modules=["q_proj", "k_proj", "v_proj", "o_proj"],
        target_parameters=["mlp.experts.gate_up_proj", "mlp.experts.down_proj"],
        init_lora_weights=True,
    )
    adapted = get_peft_model(MoonModel.from_pretrained(folder), settings)
    with torch.no_grad():
        torch.testing.assert_close(adapted.eval()(**batch).embeddings, before, rtol=1e-5, atol=1e-5)
    adapters = {name: p for name, p in adapted.named_parameters() if p.requires_grad}
    assert all("lora_" in name for name in adapters)
    assert {"experts", "self_attn"} <= {part for name in adapters for part in name.split(".")}
    optimizer = torch.optim.Adam(adapters.values(), lr=1e-2)
    target = torch.nn.functional.normalize(torch.randn(len(PRODUCTS), before.shape[1]), dim=1)
    losses = []
    for _ in range(4):
        loss = -(adapted.train()(**batch).embeddings * target).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    with torch.no_grad():
        trained = adapted.eval()(**batch).embeddings
    assert (trained - before).abs().max() > 1e-3
    adapted.save_pretrained(tmp_path / "adapter")
    loaded = PeftModel.from_pretrained(MoonModel.from_pretrained(folder), tmp_path / "adapter").eval()
    with torch.no_grad():
        torch.testing.assert_close(loaded(**batch).embeddings, trained, rtol=1e-5, atol=1e-5)
        merged = loaded.merge_and_unload()
        torch.testing.assert_close(merged(**batch).embeddings, trained, rtol=1e-4, atol=1e-4)
    merged.save_pretrained(tmp_path / "merged")
    again = MoonModel.from_pretrained(tmp_path / "merged").eval()
    with torch.no_grad():
        torch.testing.assert_close(again(**batch).embeddings, trained, rtol=1e-4, atol=1e-4)


def test_the_variants_with_levels_have_three_of_them(folder):
    model = MoonModel.from_pretrained(folder)
    scores = [layer.fire.level_scores for layer in model.vlm.language_model.layers if getattr(layer, "fire", None)]
    assert bool(scores) == (model.config.readout == "emb")
    has_many = model.config.vision_config.depth == 4
    assert all(len(score) == 3 if has_many else score is None for score in scores)


def backward_of(model, batch, checkpointing, packed=None):
    """The output after a backward pass through it in training, and the gradients."""
    if checkpointing:
        model.gradient_checkpointing_enable()
    output = model(**batch, output_router_stats=True, packed=packed)
    assert output.embeddings.dtype == output.router_loss.dtype == torch.float32
    (output.embeddings[:, 0].sum() + output.router_loss).backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert all(torch.isfinite(gradient).all() for gradient in gradients.values())
    assert sum(bool(gradient.any()) for gradient in gradients.values()) > 0.9 * len(gradients)
    assert all(bool(gradients[name].any()) for name in gradients if name.endswith((".level_scores", ".fire.scale")))
    return output, gradients


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("precision", ["autocast", "bf16 weights", "bf16 weights under autocast"])
def test_bf16_is_near_float32_and_learns(folder, precision, checkpointing):
    batch = batch_of(folder)
    with torch.no_grad():
        exact = MoonModel.from_pretrained(folder)(**batch).embeddings
    model = MoonModel.from_pretrained(folder, dtype=None if precision == "autocast" else torch.bfloat16).train()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled="autocast" in precision):
        output, gradients = backward_of(model, batch, checkpointing)
    assert (output.embeddings * exact).sum(dim=1).min() > 0.98
    assert {gradient.dtype for gradient in gradients.values()} == {model.dtype}


@pytest.mark.parametrize("checkpointing", [False, True])
def test_packed_rows_learn_under_autocast_too(folder, checkpointing):
    batch = batch_of(folder)
    with torch.no_grad():
        exact = MoonModel.from_pretrained(folder)(**batch).embeddings
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output, _ = backward_of(MoonModel.from_pretrained(folder).train(), batch, checkpointing, packed=True)
    assert (output.embeddings * exact).sum(dim=1).min() > 0.98


@pytest.mark.parametrize("precision", ["autocast", "bf16 weights"])
def test_the_writer_writes_and_thinks_in_bf16(folder, precision):
    processor = MoonProcessor.from_pretrained(folder)
    writer = MoonForConditionalGeneration.from_pretrained(
        folder, dtype=None if precision == "autocast" else torch.bfloat16
    ).eval()
    thinks = processor.max_reasoning_tokens is not None
    batch = batch_of(folder, **({"reasoning": "generate"} if thinks else {"padding_side": "left"}))
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "autocast"):
        written = writer.generate(**batch, max_new_tokens=4, min_new_tokens=4, do_sample=False)
        if thinks:
            vectors = writer.embed(PRODUCTS, reasoning="generate", processor=processor).embeddings
            torch.testing.assert_close(vectors.norm(dim=1), torch.ones(len(PRODUCTS)))
    assert written.shape == (len(PRODUCTS), batch["input_ids"].shape[1] + 4)


def test_decoder_layers_compile_without_a_graph_break(folder):
    batch = batch_of(folder)
    model = MoonModel.from_pretrained(folder).eval()
    with torch.no_grad():
        expected = model(**batch, output_router_stats=True)
        torch._dynamo.reset()
        for layer in model.vlm.language_model.layers:
            layer.forward = torch.compile(layer.forward, backend="eager", fullgraph=True)
        found = model(**batch, output_router_stats=True)
    torch.testing.assert_close(found.embeddings, expected.embeddings, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.router_loss, expected.router_loss, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_sampled_log_probabilities_equal_recomputed_ones(folder, checkpointing):
    """GRPO samples with a cache, then computes the same tokens' probabilities in one pass, from input_ids alone."""
    processor = MoonProcessor.from_pretrained(folder)
    options = {"reasoning": "generate"} if processor.max_reasoning_tokens else {"padding_side": "left"}
    batch = batch_of(folder, **options)
    writer = MoonForConditionalGeneration.from_pretrained(folder)
    width = batch["input_ids"].shape[1]
    torch.manual_seed(0)
    with torch.no_grad():
        sampled = writer.eval().generate(
            **batch,
            max_new_tokens=12,
            min_new_tokens=12,
            do_sample=True,
            top_k=0,
            output_logits=True,
            return_dict_in_generate=True,
        )
    tokens_BR = sampled.sequences[:, width:]
    logits_BRV = torch.stack(sampled.logits, dim=1)
    then_BR = logits_BRV.log_softmax(dim=-1).gather(2, tokens_BR[..., None])[..., 0]
    if checkpointing:
        writer.train()
        writer.gradient_checkpointing_enable()
    mask = torch.cat([batch["attention_mask"], torch.ones_like(tokens_BR)], dim=1)
    pictures = {name: batch[name] for name in ("pixel_values", "image_grid_thw")}
    logits = writer(input_ids=sampled.sequences, attention_mask=mask, **pictures, logits_to_keep=13).logits[:, :-1]
    now_BR = logits.log_softmax(dim=-1).gather(2, tokens_BR[..., None])[..., 0]
    torch.testing.assert_close(now_BR, then_BR, rtol=1e-4, atol=1e-4)
    if checkpointing:
        now_BR.sum().backward()
        assert writer.model.vlm.language_model.layers[0].mlp.router.weight.grad.any()


def test_reentrant_checkpointing_is_refused(folder):
    model = MoonModel.from_pretrained(folder)
    with pytest.raises(ValueError, match="expected use_reentrant=False"):
        model.gradient_checkpointing_enable({"use_reentrant": True})


def test_the_writer_packs_too_and_then_keeps_no_cache(folder):
    batch = batch_of(folder)
    writer = MoonForConditionalGeneration.from_pretrained(folder).eval()
    with torch.no_grad():
        apart, packed = writer(**batch), writer(**batch, packed=True)
    attended = batch["attention_mask"].bool()
    torch.testing.assert_close(packed.logits[attended], apart.logits[attended], rtol=1e-4, atol=1e-5)
    assert apart.past_key_values is not None
    assert packed.past_key_values is None


def test_quantised_linear_layers_are_given_states_in_their_own_dtype(folder):
    """A stand-in for a quantised layer: its weight is of whole numbers, its input of floating point."""

    class Quantised(torch.nn.Module):
        def __init__(self, linear):
            super().__init__()
            self.scale = linear.weight.abs().amax() / 127
            self.weight = torch.nn.Parameter((linear.weight / self.scale).round().to(torch.int8), requires_grad=False)

        def forward(self, states):
            assert states.is_floating_point()
            return states @ (self.weight.to(states.dtype) * self.scale).T

    batch = batch_of(folder)
    model = MoonModel.from_pretrained(folder).eval()
    with torch.no_grad():
        exact = model(**batch).embeddings
        model.projection = Quantised(model.projection)
        if model.fusion is not None:
            for name in ("q_proj", "k_proj", "v_proj", "o_proj", "gate_in", "gate_out"):
                setattr(model.fusion, name, Quantised(getattr(model.fusion, name)))
        assert (model(**batch).embeddings * exact).sum(dim=1).min() > 0.99


def test_a_decoding_step_that_lacks_what_it_needs_is_refused(folder):
    batch = batch_of(folder)
    model = MoonModel.from_pretrained(folder).eval()
    with torch.no_grad():
        cache = model(**batch, use_cache=True, output_embeddings=False).past_key_values
        step = {"input_ids": torch.full((3, 1), 40), "past_key_values": cache}
        reasons = "mean read-out needs the whole text|need aspect_ids|no <emb> token|needs raw_tokens"
        with pytest.raises(ValueError, match=reasons):
            model(**step, output_embeddings=True)


def test_image_tokens_without_pictures_are_refused(folder):
    batch = {name: value for name, value in batch_of(folder).items() if name not in ("pixel_values", "image_grid_thw")}
    with pytest.raises(ValueError, match=r"rows \[0, 2\] of the batch have image tokens but there are no pixel_values"):
        MoonModel.from_pretrained(folder)(**batch)


def test_a_model_made_of_a_half_precision_base_is_of_one_dtype(folder):
    config = MoonModel.from_pretrained(folder).config
    for part in (config.vlm_config, config.text_config, config.vision_config):
        part.dtype = torch.bfloat16
    assert {parameter.dtype for parameter in MoonModel(config).parameters()} == {torch.float32}
