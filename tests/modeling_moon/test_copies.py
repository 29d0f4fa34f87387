"""Models that are pickled, deep-copied, saved whole and sent to other processes, before and after they were used."""

import copy
import io
import multiprocessing
import pickle

import pytest
import torch
from pictures import noise
from sentence_transformers import SentenceTransformer

from modeling_moon import MoonForConditionalGeneration, MoonModel
from processing_moon import MoonProcessor

VARIANTS = [
    (backbone, moon)
    for backbone in ("qwen3_vl", "qwen2_5_vl")
    for moon in ({"preset": "moon1"}, {"preset": "moon2"}, {"preset": "moon3"})
] + [("qwen3_vl", {"preset": "moon3", "three_levels": True, "fire_vision_blocks": [0, 1, 3]})]


PRODUCTS = [
    {"title": "red shoes", "category": "Fashion > Shoes", "images": [noise(96, 64), noise(64, 64, 1)]},
    {"title": "a mug without a picture", "attributes": {"colour": "blue"}},
]


@pytest.fixture(scope="module", params=VARIANTS, ids=lambda pair: "-".join([pair[0], *map(str, pair[1].values())]))
def folder(request, tiny_moon):
    backbone, moon = request.param
    return tiny_moon(backbone, trained=True, **moon)


def vectors(model, batch):
    with torch.no_grad():
        return model(**batch).embeddings


def used(model, processor):
    """A model of which everything was asked that leaves something behind."""
    batch = dict(processor(products=PRODUCTS, return_tensors="pt"))
    gives_attentions = model.config.text_config._attn_implementation == "eager"
    with torch.no_grad():
        assert model(**batch, output_hidden_states=True, output_attentions=gives_attentions).hidden_states
        model.vlm.get_image_features(batch["pixel_values"], batch["image_grid_thw"], output_hidden_states=True)
    reasoning = "none" if model.config.max_reasoning_tokens is None else "generate"
    model.embed(PRODUCTS, reasoning=reasoning)
    return model


def through_pickle(model):
    return pickle.loads(pickle.dumps(model))


def through_torch_save(model):
    stream = io.BytesIO()
    torch.save(model, stream)
    stream.seek(0)
    return torch.load(stream, weights_only=False)


@pytest.mark.parametrize("way", [through_pickle, through_torch_save, copy.deepcopy])
def test_a_copy_gives_the_same_and_shares_nothing(folder, way):
    processor = MoonProcessor.from_pretrained(folder)
    batch = dict(processor(products=PRODUCTS, return_tensors="pt"))
    fresh = MoonModel.from_pretrained(folder, attn_implementation="eager").eval()
    expected = vectors(fresh, batch)
    for model in (fresh, used(fresh, processor)):
        hooks = [len(module._forward_hooks) for module in model.modules()]
        twin = way(model)
        assert [len(module._forward_hooks) for module in model.modules()] == hooks
        assert torch.equal(vectors(twin, batch), expected)
        assert not {id(module) for module in twin.modules()} & {id(module) for module in model.modules()}
        assert not {p.data_ptr() for p in twin.parameters()} & {p.data_ptr() for p in model.parameters()}
        assert [type(module) for module in twin.modules()] == [type(module) for module in model.modules()]
        with torch.no_grad():
            ours, theirs = (one(**batch, output_hidden_states=True, output_attentions=True) for one in (twin, model))
        assert len(ours.hidden_states) == len(theirs.hidden_states) > 0
        assert len(ours.attentions) == len(theirs.attentions) > 0


def test_a_copied_writer_keeps_its_tied_layer_and_writes_the_same(folder):
    processor = MoonProcessor.from_pretrained(folder)
    writer = MoonForConditionalGeneration.from_pretrained(folder).eval()
    used(writer.model, processor)
    twin = through_pickle(writer)
    assert twin.lm_head.weight is twin.get_input_embeddings().weight
    thinks = {"reasoning": "generate"} if processor.max_reasoning_tokens else {"padding_side": "left"}
    batch = processor(products=PRODUCTS, return_tensors="pt", **thinks)
    written = [one.generate(**batch, max_new_tokens=3, min_new_tokens=3) for one in (writer, twin)]
    assert torch.equal(*written)


def test_hooks_of_others_are_copied(tiny_moon):
    model = MoonModel.from_pretrained(tiny_moon("qwen3_vl")).eval()
    model.vlm.visual.register_forward_hook(print)
    with torch.no_grad():
        model(input_ids=torch.tensor([[40, 41]]), output_hidden_states=True)
    assert print in through_pickle(model).vlm.visual._forward_hooks.values()


def test_a_copy_is_trained_on_its_own(tiny_moon):
    folder = tiny_moon("qwen2_5_vl", preset="moon3", trained=True)
    processor = MoonProcessor.from_pretrained(folder)
    model = used(MoonModel.from_pretrained(folder), processor).train()
    twin = copy.deepcopy(model)
    twin.gradient_checkpointing_enable()
    batch = dict(processor(products=PRODUCTS, return_tensors="pt"))
    twin(**batch).embeddings[:, 0].sum().backward()
    assert all(p.grad is None for p in model.parameters())
    assert twin.detail_mergers[0].merge.weight.grad.any()


def _answer(connection):
    """In another process, which never built a model: the vectors and the number of hidden states of what it is sent."""
    for model, batch in iter(connection.recv, None):
        with torch.no_grad():
            output = model(**batch, output_hidden_states=True)
        connection.send((vectors(model, batch).tolist(), len(output.hidden_states or ())))


@pytest.mark.slow
def test_a_spawned_process_gets_the_same_vectors(tiny_moon):
    ours, theirs = multiprocessing.get_context("spawn").Pipe()
    process = multiprocessing.get_context("spawn").Process(target=_answer, args=(theirs,), daemon=True)
    process.start()
    for backbone, moon in VARIANTS:
        folder = tiny_moon(backbone, trained=True, **moon)
        processor = MoonProcessor.from_pretrained(folder)
        batch = dict(processor(products=PRODUCTS, return_tensors="pt"))
        model = MoonModel.from_pretrained(folder).eval()
        expected = vectors(model, batch)
        for one in (model, used(model, processor)):
            ours.send((one, batch))
            found, states = ours.recv()
            torch.testing.assert_close(torch.tensor(found), expected, rtol=1e-5, atol=1e-5)
            assert states == model.config.text_config.num_hidden_layers + 1
    ours.send(None)
    process.join(60)
    assert process.exitcode == 0


@pytest.mark.slow
def test_a_pool_of_sentence_transformers_after_the_first_picture(tiny_moon):
    folder = tiny_moon("qwen2_5_vl", preset="moon3", trained=True)
    model = SentenceTransformer(str(folder), trust_remote_code=True, device="cpu")
    expected = model.encode(PRODUCTS)
    pool = model.start_multi_process_pool(["cpu"])
    try:
        found = model.encode(PRODUCTS, pool=pool)
    finally:
        model.stop_multi_process_pool(pool)
    torch.testing.assert_close(torch.as_tensor(found), torch.as_tensor(expected), rtol=1e-5, atol=1e-5)
