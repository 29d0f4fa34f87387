import pytest
import torch
from closeness import VALUE

from modeling_moon import MoonModel
from processing_moon import MoonProcessor
from training.momentum_encoder import MomentumEncoder


@pytest.fixture(scope="module")
def moon(tiny_moon):
    folder = tiny_moon("qwen3_vl", trained=True)
    batch = MoonProcessor.from_pretrained(folder)(products=[{"title": "red shoes"}, {"title": "a mug"}])
    return lambda: MoonModel.from_pretrained(folder).eval(), dict(batch)


def moved(model, seed):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.05 * torch.randn(parameter.shape, generator=generator)


def test_the_copy_is_the_average_of_the_path_and_encodes_with_it(moon):
    load, batch = moon
    model, reference = load(), load()
    encoder = MomentumEncoder(model, 0.9)
    assert torch.equal(encoder.encode(batch), model(**batch).embeddings)
    for seed in range(3):
        moved(model, seed)
        encoder.update()
        with torch.no_grad():
            for average, parameter in zip(reference.parameters(), model.parameters(), strict=True):
                average.mul_(0.9).add_(parameter, alpha=0.1)
    found = encoder.encode(batch)
    assert not found.requires_grad
    assert torch.allclose(
        found, reference(**batch).embeddings, rtol=0, atol=VALUE
    )  # the averages are rounded otherwise
    assert not torch.allclose(found, model(**batch).embeddings, atol=1e-2)


def test_encoding_leaves_the_model_and_its_gradients_alone(moon):
    load, batch = moon
    model, same = load(), load()
    encoder = MomentumEncoder(model, 0.5)
    moved(model, 1)
    moved(same, 1)
    for one, between in ((model, True), (same, False)):
        vectors = one(**batch).embeddings
        if between:
            encoder.encode(batch)
        (vectors[0] * torch.arange(vectors.shape[1])).sum().backward()
    for one, two in zip(model.parameters(), same.parameters(), strict=True):
        assert torch.equal(one, two)
        assert (one.grad is None and two.grad is None) or torch.equal(one.grad, two.grad)


def test_only_what_learns_is_averaged_and_restored(moon, tmp_path):
    load, batch = moon
    model = load()
    model.vlm.requires_grad_(False)
    encoder = MomentumEncoder(model, 0.5)
    assert list(encoder.state_dict()) == ["projection.weight"]
    moved(model, 2)
    encoder.update()
    torch.save(encoder.state_dict(), tmp_path / "encoder.pt")
    restored = MomentumEncoder(model, 0.5)
    assert not torch.allclose(restored.encode(batch), encoder.encode(batch), atol=1e-3)
    restored.load_state_dict(torch.load(tmp_path / "encoder.pt", weights_only=True))
    assert torch.equal(restored.encode(batch), encoder.encode(batch))


def test_what_cannot_work_is_refused(moon):
    model = moon[0]()
    for momentum in (-0.1, 1.0):
        with pytest.raises(ValueError, match=f"momentum: found {momentum}"):
            MomentumEncoder(model, momentum)
    with pytest.raises(ValueError, match="differs in .*projection.weight"):
        MomentumEncoder(model, 0.5).load_state_dict({})
