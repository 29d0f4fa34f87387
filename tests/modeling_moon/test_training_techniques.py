"""LoRA on attention and experts, bf16 autocast, torch.compile, and log-probabilities as GRPO needs them, for every preset."""

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from PIL import Image

from modeling_moon import MoonForConditionalGeneration, MoonModel
from processing_moon import MoonProcessor

PRESETS = [(backbone, preset) for backbone in ("qwen3_vl", "qwen2_5_vl") for preset in ("moon1", "moon2", "moon3")]


def picture(width, height, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return Image.fromarray(torch.randint(0, 256, (height, width, 3), generator=generator, dtype=torch.uint8).numpy())


PRODUCTS = [
    {
        "title": "red running shoes",
        "category": ["Fashion", "Shoes"],
        "attributes": {"colour": "red", "material": ["mesh", "rubber"]},
        "images": [picture(96, 64), picture(64, 64, 1)],
    },
    {"title": "a mug without a picture", "category": "Home > Mugs", "attributes": {"colour": "blue"}},
    {"images": picture(64, 128, 3)},
]


@pytest.fixture(scope="module", params=PRESETS, ids=lambda pair: "-".join(pair))
def folder(request, tiny_moon):
    backbone, preset = request.param
    return tiny_moon(backbone, preset=preset, trained=True)


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


def test_bf16_autocast_is_near_float32_and_learns(folder):
    batch = batch_of(folder)
    model = MoonModel.from_pretrained(folder).train()
    with torch.no_grad():
        exact = model(**batch).embeddings
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = model(**batch, output_router_stats=True)
    assert output.embeddings.dtype == output.router_loss.dtype == torch.float32
    assert (output.embeddings * exact).sum(dim=1).min() > 0.98
    (output.embeddings[:, 0].sum() + output.router_loss).backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    assert all(torch.isfinite(gradient).all() for gradient in gradients)
    assert sum(bool(gradient.any()) for gradient in gradients) > 0.9 * len(gradients)


def test_a_bf16_checkpoint_gives_float32_vectors_near_the_exact_ones(folder):
    batch = batch_of(folder)
    half = MoonModel.from_pretrained(folder, dtype=torch.bfloat16).eval()
    with torch.no_grad():
        exact = MoonModel.from_pretrained(folder).eval()(**batch).embeddings
        batch = {name: value.bfloat16() if value.is_floating_point() else value for name, value in batch.items()}
        vectors = half(**batch).embeddings
    assert vectors.dtype == torch.float32
    assert (vectors * exact).sum(dim=1).min() > 0.98


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
