import pytest
import torch
from closeness import GRADIENT, VALUE, relative_difference
from pictures import noise
from torch import nn

from modeling_moon import MoonModel
from processing_moon import MoonProcessor
from training.encoding.batch_encoding import BatchEncoder, BatchPart
from training.encoding.shared_pictures import SharedPictures, vision_tower

SIZES = [(48, 32), (32, 64), (32, 32)]


def products(*which):
    return [{"title": f"thing {seed}", "images": [noise(*SIZES[seed], seed)]} for seed in which]


@pytest.mark.parametrize("backbone", ["qwen3_vl", "qwen2_5_vl"])
def test_another_form_of_the_same_pictures_gives_the_same_vectors_and_gradients_without_the_tower(tiny_moon, backbone):
    folder = tiny_moon(backbone, trained=True)
    processor = MoonProcessor.from_pretrained(folder)
    both = dict(processor(products=products(0, 1, 2), form="mm"))
    image = dict(processor(products=products(2, 0), form="i"))
    results, calls = [], []
    for shared in (False, True):
        model = MoonModel.from_pretrained(folder).train()
        model.vlm.visual.patch_embed.register_forward_hook(lambda *_: calls.append(shared))  # noqa: B023
        if shared:
            with SharedPictures(vision_tower(model)) as pictures:
                first = model(**both).embeddings
                pictures.reuse([2, 0])
                second = model(**image).embeddings
        else:
            first, second = model(**both).embeddings, model(**image).embeddings
        ((first[:2] * second).sum() + first[2, 0]).backward()
        gradients = {name: one.grad for name, one in model.named_parameters() if one.grad is not None}
        results.append((first.detach(), second.detach(), gradients))
    assert calls == [False, False, True]
    assert not torch.equal(results[0][0][[2, 0]], results[0][1])
    for left, right in zip(results[0][:2], results[1][:2], strict=True):
        assert torch.allclose(left, right, atol=VALUE)
    assert relative_difference(results[0][2], results[1][2]) < GRADIENT


def test_after_the_context_the_tower_runs_as_before(tiny_moon):
    folder = tiny_moon("qwen3_vl", trained=True)
    batch = dict(MoonProcessor.from_pretrained(folder)(products=products(0), form="mm"))
    model = MoonModel.from_pretrained(folder).eval()
    with torch.no_grad():
        before = model(**batch).embeddings
        with SharedPictures(vision_tower(model)):
            assert torch.equal(model(**batch).embeddings, before)
        assert "forward" not in vars(model.vlm.visual)
        assert torch.equal(model(**batch).embeddings, before)


def test_pictures_that_were_made_smaller_beside_a_text_are_seen_anew(tiny_moon):
    folder = tiny_moon("qwen3_vl", trained=True)
    processor = MoonProcessor.from_pretrained(folder)
    both = dict(processor(products=products(0, 1), form="mm", max_image_tokens=1))
    image = dict(processor(products=products(0, 1), form="i", max_image_tokens=4))
    assert not torch.equal(both["image_grid_thw"], image["image_grid_thw"])
    model = MoonModel.from_pretrained(folder).eval()
    with torch.no_grad():
        found = BatchEncoder(model, vision_tower(model))(BatchPart("products", both, {"i": (torch.arange(2), image)}))
        assert torch.equal(found["products/i"], model(**image).embeddings)
        assert torch.equal(found["products"], model(**both).embeddings)


def test_pictures_that_were_not_seen_or_differ_in_size_are_refused(tiny_moon):
    folder = tiny_moon("qwen3_vl", trained=True)
    processor = MoonProcessor.from_pretrained(folder)
    batch, other = (dict(processor(products=products(which), form="mm")) for which in (0, 1))
    model = MoonModel.from_pretrained(folder).eval()
    with SharedPictures(vision_tower(model)) as pictures, torch.no_grad():
        pictures.reuse([0])
        with pytest.raises(ValueError, match=r"call reuse\(\) only after a forward pass"):
            model(**batch)
        model(**batch)
        pictures.reuse([0])
        with pytest.raises(ValueError, match="pictures: found sizes"):
            model(**other)
    assert vision_tower(nn.Linear(2, 2)) is None
