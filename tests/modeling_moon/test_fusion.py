"""Multi-head modality fusion against a slow reference written from its formula, sample by sample and head by head."""

import math

import pytest
import torch
from pictures import noise
from torch.nn import functional
from transformers import AutoConfig

from modeling_moon import MoonConfig, MoonModel
from modeling_moon.modeling_moon import MoonFusion
from modeling_moon.tokens_moon import RawTokens
from processing_moon import MoonProcessor

HEADS, WIDTH = 4, 64
IDS = {"emb_token_id": 9, "title_start_token_id": 5, "title_end_token_id": 6}


def make_fusion(tiny_base, implementation, source="states"):
    config = MoonConfig(
        vlm_config=AutoConfig.from_pretrained(tiny_base("qwen3_vl")),
        readout="emb",
        fusion=True,
        fusion_heads=HEADS,
        fusion_source=source,
        embedding_dim=32,
        **IDS,
    )
    config.text_config._attn_implementation = implementation
    fusion = MoonFusion(config)
    torch.manual_seed(0)
    for parameter in fusion.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return fusion


def slow_fusion(fusion, state_H, states_TH, is_image_T, is_title_T):
    """z and gates of one sample."""
    size = WIDTH // HEADS
    if fusion.raw_norm is not None:
        gap = states_TH - states_TH.mean(dim=1, keepdim=True)
        scale = (gap.square().mean(dim=1, keepdim=True) + fusion.raw_norm.eps).sqrt()
        states_TH = gap / scale * fusion.raw_norm.weight + fusion.raw_norm.bias

    def head(matrix, x, h):
        return matrix.weight[h * size : (h + 1) * size] @ x

    sets = [[states_TH[t] for t in range(len(states_TH)) if chosen[t]] for chosen in (is_image_T, is_title_T)]
    means = [torch.stack(tokens).mean(dim=0) if tokens else torch.zeros(WIDTH) for tokens in sets]
    scores = fusion.gate_out.weight @ functional.gelu(fusion.gate_in.weight @ torch.cat([state_H, *means]))
    mixed, gates = [], []
    for h in range(HEADS):
        found, allowed = [head(fusion.v_proj, state_H, h)], [scores[3 * h]]
        for number, tokens in enumerate(sets, start=1):
            if tokens:
                query = head(fusion.q_proj, state_H, h)
                logits = torch.stack([query @ head(fusion.k_proj, x, h) / math.sqrt(size) for x in tokens])
                values = torch.stack([head(fusion.v_proj, x, h) for x in tokens])
                found.append(logits.softmax(0) @ values)
                allowed.append(scores[3 * h + number])
            else:
                found.append(torch.zeros(size))
                allowed.append(torch.tensor(-math.inf))
        gate = torch.stack(allowed).softmax(0)
        gates.append(gate)
        mixed.append(sum(gate[m] * found[m] for m in range(3)))
    return state_H + fusion.o_proj.weight @ torch.cat(mixed), torch.stack(gates)


@pytest.mark.parametrize(("implementation", "source"), [("sdpa", "states"), ("eager", "states"), ("sdpa", "raw")])
def test_output_gates_and_gradients_equal_the_formula(tiny_base, implementation, source):
    fusion = make_fusion(tiny_base, implementation, source)
    state = torch.randn(5, WIDTH, requires_grad=True)
    tokens = torch.randn(5, 7, WIDTH, requires_grad=True)
    kinds = torch.tensor(  # 1 image, 2 title, 0 neither: both, title only, image only, none, both in other places
        [
            [1, 1, 0, 2, 2, 0, 0],
            [0, 0, 0, 2, 2, 2, 0],
            [0, 1, 1, 1, 0, 0, 0],
            [0, 0, 0, 0, 0, 0, 0],
            [2, 0, 1, 2, 1, 0, 2],
        ]
    )
    raw = RawTokens(tokens, kinds == 1, kinds == 2)
    slow = [slow_fusion(fusion, state[b], tokens[b], kinds[b] == 1, kinds[b] == 2) for b in range(5)]
    slow_z, slow_gates = (torch.stack(parts) for parts in zip(*slow, strict=True))
    z, gates = fusion(state, raw)
    torch.testing.assert_close(z, slow_z, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(gates, slow_gates, rtol=1e-5, atol=1e-5)
    assert gates[1, :, 1].eq(0).all()
    assert gates[2, :, 2].eq(0).all()
    assert torch.equal(gates[3, :, 0], torch.ones(HEADS))
    target = torch.randn_like(slow_z)
    weights = [state, tokens, *fusion.parameters()]
    for ours, reference in zip(
        torch.autograd.grad((z * target).sum(), weights),
        torch.autograd.grad((slow_z * target).sum(), weights),
        strict=True,
    ):
        assert torch.isfinite(ours).all()
        torch.testing.assert_close(ours, reference, rtol=1e-4, atol=1e-4)


def test_a_missing_modality_sends_no_gradient_to_the_tokens_that_stand_in(tiny_base):
    fusion = make_fusion(tiny_base, "sdpa")
    tokens = torch.randn(1, 4, WIDTH, requires_grad=True)
    none = torch.zeros(1, 4, dtype=torch.bool)
    z, gates = fusion(torch.randn(1, WIDTH), RawTokens(tokens, none, none))
    z.sum().backward()
    assert torch.equal(gates[0, :, 0], torch.ones(HEADS))
    assert not tokens.grad.any()


@pytest.fixture(scope="module", params=["qwen3_vl", "qwen2_5_vl"])
def moon3(request, tiny_moon):
    folder = tiny_moon(request.param, preset="moon3", trained=True)
    return MoonModel.from_pretrained(folder).eval(), MoonProcessor.from_pretrained(folder)


def test_the_model_reads_image_tokens_and_the_words_between_title_markers(moon3):
    model, processor = moon3
    seen = []
    hook = model.fusion.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[1]))
    products = [
        {"title": "red shoes", "category": "Shoes", "attributes": {"colour": "red"}, "images": noise(96, 64)},
        {"title": "a blue mug", "description": "large"},
        {"images": noise(96, 64, 1)},
        {"category": "Home > Mugs"},
    ]
    batch = processor(products=products, return_tensors="pt")
    with torch.no_grad():
        gates = model(**batch).modality_gates
    hook.remove()
    raw = seen[0]
    words = [processor.tokenizer.decode(batch["input_ids"][row][raw.is_title_BT[row]]) for row in range(4)]
    assert words == ["red shoes", "a blue mug", "", ""]
    assert torch.equal(raw.is_image_BT, batch["input_ids"] == model.config.image_token_id)
    absent = gates.eq(0).all(dim=1)
    assert absent.tolist() == [[False, False, False], [False, True, False], [False, False, True], [False, True, True]]
    torch.testing.assert_close(gates.sum(dim=-1), torch.ones(4, model.config.fusion_heads))


def test_the_text_of_a_query_is_its_title(moon3):
    model, processor = moon3
    batch = processor(queries=[{"text": "red shoes"}, {"image": noise(96, 64)}], return_tensors="pt")
    with torch.no_grad():
        gates = model(**batch).modality_gates
    assert (gates[0, :, 2] > 0).all()
    assert not gates[1, :, 2].any()


@pytest.mark.parametrize("backbone", ["qwen3_vl", "qwen2_5_vl"])
def test_raw_tokens_are_the_features_of_the_picture_and_the_embeddings_of_the_title(tiny_moon, backbone):
    folder = tiny_moon(backbone, preset="moon3", trained=True, fusion_source="raw")
    model, processor = MoonModel.from_pretrained(folder).eval(), MoonProcessor.from_pretrained(folder)
    products = [{"title": "red shoes", "images": noise(96, 64)}, {"title": "a mug"}]
    batch = processor(products=products, return_tensors="pt")
    with torch.no_grad():
        raw = model(**batch, use_cache=True).raw_tokens
        features = model.vlm.get_image_features(batch["pixel_values"], batch["image_grid_thw"], return_dict=True)
    torch.testing.assert_close(raw.states_BTH[raw.is_image_BT], torch.cat(tuple(features.pooler_output)))
    words = model.get_input_embeddings()(batch["input_ids"])
    assert torch.equal(raw.states_BTH[raw.is_title_BT], words[raw.is_title_BT])
    assert raw.is_title_BT.any(dim=1).all()


def test_a_raw_title_does_not_depend_on_the_picture_before_it_and_its_state_does(tiny_moon):
    seen = {}
    for source in ("raw", "states"):
        folder = tiny_moon("qwen3_vl", preset="moon3", trained=True, fusion_source=source)
        model, processor = MoonModel.from_pretrained(folder).eval(), MoonProcessor.from_pretrained(folder)
        products = [{"title": "red shoes", "images": noise(96, 64, seed)} for seed in (0, 1)]
        with torch.no_grad():
            raw = model(**processor(products=products, return_tensors="pt"), use_cache=True).raw_tokens
        seen[source] = [raw.states_BTH[row][raw.is_title_BT[row]] for row in range(2)]
    assert torch.equal(*seen["raw"])
    assert (seen["states"][0] - seen["states"][1]).abs().max() > 1e-4


def test_fusion_changes_the_vector_and_no_hidden_state(tiny_moon):
    with_fusion = MoonModel.from_pretrained(tiny_moon("qwen3_vl", preset="moon3", trained=True)).eval()
    folder = tiny_moon("qwen3_vl", preset="moon3", trained=True)
    processor = MoonProcessor.from_pretrained(folder)
    batch = processor(products=[{"title": "red shoes", "images": noise(96, 64)}], return_tensors="pt")
    with torch.no_grad():
        before = with_fusion(**batch)
        with_fusion.fusion.o_proj.weight.zero_()
        after = with_fusion(**batch)
    assert torch.equal(before.last_hidden_state, after.last_hidden_state)
    assert (before.embeddings - after.embeddings).abs().max() > 1e-4
    with_fusion.fusion = None
    with torch.no_grad():
        torch.testing.assert_close(with_fusion(**batch).embeddings, after.embeddings)
        assert with_fusion(**batch).modality_gates is None


def test_fusion_without_the_ids_it_reads_is_refused(moon3):
    model, processor = moon3
    batch = processor(queries=[{"text": "red shoes"}], return_tensors="pt")
    embeds = model.get_input_embeddings()(batch["input_ids"])
    with pytest.raises(ValueError, match="input_ids"):
        model(
            inputs_embeds=embeds,
            attention_mask=batch["attention_mask"],
            aspect_ids=torch.zeros_like(batch["input_ids"]),
            output_embeddings=True,
        )
    with torch.no_grad():
        cache = model(
            **{k: v[:, :-1] for k, v in batch.items()}, use_cache=True, output_embeddings=False
        ).past_key_values
        with pytest.raises(ValueError, match="fusion in a decoding step needs raw_tokens"):
            model(
                input_ids=batch["input_ids"][:, -1:],
                attention_mask=batch["attention_mask"],
                past_key_values=cache,
                aspect_ids=torch.zeros(1, 1, dtype=torch.long),
                output_embeddings=True,
            )
