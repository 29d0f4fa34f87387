import contextlib

import pytest
import torch
from closeness import DOUBLE, GRADIENT, VALUE, relative_difference
from peft import LoraConfig, get_peft_model
from pictures import noise
from torch import nn
from torch.nn.functional import normalize

from modeling_moon import MoonModel
from processing_moon import MoonProcessor
from training.encoding.chunked_encoding import ChunkedEncoding, images_per_row, number_of_rows, select_rows, slice_rows
from training.losses.info_nce import InfoNCELoss
from training.losses.matryoshka import MatryoshkaLoss

PRODUCTS = [
    {"title": "red shoes", "images": [noise(48, 32, 0)]},
    {"title": "brown leather tote bag, gold buckle"},
    {"title": "mug", "images": [noise(48, 32, 1), noise(48, 32, 2)]},
    {"images": [noise(48, 32, 3)]},
    {"title": "blue cotton shirt"},
]


@pytest.fixture(scope="module")
def moon(tiny_moon):
    folder = tiny_moon("qwen3_vl", trained=True)
    processor = MoonProcessor.from_pretrained(folder)
    batch = processor(products=PRODUCTS, form="mm", max_image_tokens=4)
    return lambda: MoonModel.from_pretrained(folder).train(), dict(batch)


class Encoder(nn.Module):
    """A layer with dropout, so that a repeated pass must repeat its random choices; in float64, equal on any machine."""

    def __init__(self, dropout=0.0):
        super().__init__()
        torch.manual_seed(1)
        self.layer, self.dropout = nn.Linear(5, 8).double(), nn.Dropout(dropout)

    def forward(self, x):
        return normalize(self.layer(self.dropout(x.double())), dim=1)


def gradients(model):
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}


LOSSES = [InfoNCELoss(0.1), InfoNCELoss(0.1, block_size=3), MatryoshkaLoss(InfoNCELoss(0.1), [2, 4])]


@pytest.mark.parametrize("loss", LOSSES, ids=["plain", "streamed", "matryoshka"])
@pytest.mark.parametrize("chunk", [1, 3, 8, 20])
def test_chunks_give_the_loss_and_the_gradient_of_the_whole_batch(chunk, loss):
    x = torch.randn(16, 5, generator=torch.Generator().manual_seed(0))
    whole, parts = Encoder(), Encoder()
    vectors = whole(x)
    expected = loss(vectors[:8], vectors[8:], torch.arange(8))
    expected.backward()
    encoding = ChunkedEncoding(lambda rows: {"v": parts(rows)}, list(x.split(chunk)))
    vectors = encoding.vectors()["v"]
    found = loss(vectors[:8], vectors[8:], torch.arange(8))
    found.backward()
    assert not gradients(parts)
    encoding.backward()
    assert found.item() == pytest.approx(expected.item(), abs=DOUBLE)
    assert relative_difference(gradients(whole), gradients(parts)) < DOUBLE


def in_one_graph(encode, chunks, loss):
    """The same chunks in the same order with all graphs alive, as a reference for the random choices."""
    found = [encode(chunk) for chunk in chunks]
    vectors = {name: torch.cat([part[name] for part in found if name in part]) for name in found[0]}
    value = loss(vectors)
    value.backward()
    return value


def test_dropout_repeats_itself_and_leaves_the_random_state_as_one_pass_does():
    x = torch.randn(12, 5, generator=torch.Generator().manual_seed(0))
    one, two = Encoder(dropout=0.5), Encoder(dropout=0.5)

    def loss(vectors):
        return InfoNCELoss(0.1)(vectors["v"][:6], vectors["v"][6:], torch.arange(6))

    torch.manual_seed(7)
    expected = in_one_graph(lambda rows: {"v": one(rows)}, x.split(4), loss)
    after = torch.get_rng_state()
    torch.manual_seed(7)
    encoding = ChunkedEncoding(lambda rows: {"v": two(rows)}, x.split(4))
    found = loss(encoding.vectors())
    found.backward()
    encoding.backward()
    assert torch.equal(torch.get_rng_state(), after)
    assert torch.equal(found, expected)
    assert relative_difference(gradients(one), gradients(two)) < DOUBLE


def adapted(model):
    config = LoraConfig(r=2, lora_dropout=0.3, target_modules=["q_proj", "v_proj"], modules_to_save=["projection"])
    torch.manual_seed(3)
    model = get_peft_model(model, config)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:  # zeros at first, behind which nothing else would learn
            nn.init.normal_(parameter, std=0.1)
    return model.train()


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("with_adapters", [False, True])
def test_chunks_of_a_moon_go_with_adapters_and_gradient_checkpointing(moon, with_adapters, checkpointing):
    load, batch = moon
    chunks = [select_rows(batch, rows) for rows in torch.arange(5).split(2)]
    results = []
    for chunked in (False, True):
        model = adapted(load()) if with_adapters else load()
        if checkpointing and chunked:
            model.gradient_checkpointing_enable({"use_reentrant": False})
            model.enable_input_require_grads()

        def encode(chunk, model=model):
            return {"v": model(**chunk).embeddings}

        def loss(vectors):
            return InfoNCELoss(0.2)(vectors["v"][:2], vectors["v"], torch.tensor([2, 3]))

        torch.manual_seed(5)
        if chunked:
            encoding = ChunkedEncoding(encode, chunks)
            value = loss(encoding.vectors())
            value.backward()
            encoding.backward()
        else:
            value = in_one_graph(encode, chunks, loss)
        results.append((value.item(), gradients(model)))
    assert results[0][0] == pytest.approx(results[1][0], abs=VALUE)
    assert relative_difference(results[0][1], results[1][1]) < GRADIENT


def test_one_chunk_keeps_its_graph_and_only_the_last_backward_synchronises_and_gets_the_further_term():
    log, model = [], Encoder()

    @contextlib.contextmanager
    def without_sync():
        log.append("quiet")
        yield
        log.append("loud")

    def encode(rows):
        log.append(f"{len(rows)} rows, graph {torch.is_grad_enabled()}")
        return {"v": model(rows)}

    encoding = ChunkedEncoding(encode, torch.ones(5, 5).split(2), without_sync)
    encoding.vectors()["v"].sum().backward()
    extra = nn.Parameter(torch.zeros(()))
    encoding.backward(lambda: extra * 3)
    first = ["2 rows, graph False", "2 rows, graph False", "quiet", "1 rows, graph True", "loud"]
    second = ["quiet", "loud", "quiet", "2 rows, graph True", "loud", "2 rows, graph True"]
    assert log == first + second
    assert extra.grad == 3


def test_chunks_may_lack_a_name_and_vectors_without_gradient_are_skipped():
    model = Encoder()

    def encode(rows):
        vectors = model(rows)
        return {"all": vectors, "unused": vectors * 2, **({"even": vectors[:1]} if len(rows) == 2 else {})}

    x = torch.randn(5, 5, generator=torch.Generator().manual_seed(0))
    encoding = ChunkedEncoding(encode, x.split(2))
    found = encoding.vectors()
    assert {name: len(tensor) for name, tensor in found.items()} == {"all": 5, "unused": 5, "even": 2}
    (found["all"] ** 3).sum().add((found["even"] ** 3).sum()).backward()
    encoding.backward()
    reference = Encoder()
    vectors = reference(x)
    ((vectors**3).sum() + (vectors[[0, 2]] ** 3).sum()).backward()
    assert relative_difference(gradients(reference), gradients(model)) < DOUBLE


def test_what_cannot_be_encoded_in_chunks_is_refused():
    with pytest.raises(ValueError, match="chunks: found none"):
        ChunkedEncoding(lambda rows: rows, [])
    encoding = ChunkedEncoding(lambda rows: {"v": rows}, [torch.ones(2, 2)])
    encoding.vectors()
    with pytest.raises(RuntimeError, match="found no vector with a gradient"):
        encoding.backward()


def test_images_belong_to_the_rows_that_hold_their_tokens(moon):
    _, batch = moon
    assert number_of_rows(batch) == 5
    assert images_per_row(batch).tolist() == [1, 0, 2, 1, 0]
    texts = select_rows(batch, torch.tensor([1, 4]))
    assert "pixel_values" not in texts
    assert images_per_row(texts).tolist() == [0, 0]


@pytest.mark.parametrize("rows", [[0, 1], [2], [1, 3, 4], [0, 2, 3]])
def test_chosen_rows_are_encoded_as_in_the_whole_batch(moon, rows):
    load, batch = moon
    model = load().eval()
    part = select_rows(batch, torch.tensor(rows))
    with torch.no_grad():
        assert torch.allclose(model(**part).embeddings, model(**batch).embeddings[rows], atol=1e-5)
    assert part["attention_mask"].any(dim=0).all()
    assert part["input_ids"].shape == part["attention_mask"].shape


@pytest.mark.parametrize("start, stop", [(0, 5), (0, 2), (1, 2), (2, 4), (4, 5)])
def test_a_slice_of_rows_is_what_choosing_them_gives_without_a_copy(moon, start, stop):
    _, batch = moon
    chosen, sliced = select_rows(batch, torch.arange(start, stop)), slice_rows(batch, start, stop)
    assert set(chosen) == set(sliced)
    for name, tensor in sliced.items():
        assert torch.equal(tensor, chosen[name])
        assert tensor.untyped_storage().data_ptr() == batch[name].untyped_storage().data_ptr()


def test_rows_that_do_not_ascend_are_refused(moon):
    _, batch = moon
    for rows in ([1, 0], [0, 0], [4, 5], [-1, 2]):
        with pytest.raises(ValueError, match="expected ascending numbers from 0 to 4"):
            select_rows(batch, torch.tensor(rows))
