import math

import pytest
import torch
from torch.nn.functional import normalize
from torch.utils._python_dispatch import TorchDispatchMode

from training.batches.negatives import NO_ID, Candidates
from training.contrastive.terms import hits, make_terms
from training.losses.dual_alignment import DualAlignmentLoss
from training.losses.info_nce import InfoNCELoss
from training.losses.sample_filter import SampleFilter
from training.recipe.loss import LossArguments

WIDTH, TEMPERATURE = 6, 0.2


def unit(rows, seed):
    return normalize(torch.randn(rows, WIDTH, generator=torch.Generator().manual_seed(seed)), dim=1)


def ids(*rows):
    width = max(map(len, rows))
    return torch.tensor([[*row, *[NO_ID] * (width - len(row))] for row in rows], dtype=torch.int64)


@pytest.fixture
def batch():
    """Three queries; the first has two encoded positives, the second none but its own, the third no hard negative.

    Products 10, 11 | 20, 21 | 30; product 21 is in the variant group of 20; 11 answers the third query too, less well.
    """
    return {
        "target": torch.tensor([0, 3, 6]),
        "product": torch.tensor([10, 11, 12, 20, 21, 22, 30]),
        "group": torch.tensor([NO_ID, NO_ID, NO_ID, 5, 5, NO_ID, NO_ID]),
        "query_group": torch.tensor([NO_ID, 5, NO_ID]),
        "other": ids([11], [], [11]),
        "negative": ids([], [], []).reshape(3, 0),
        "positive": ids([0, 1], [3], [6]),
        "positive_weight": torch.tensor([[1.0, 0.2], [0.5, 0.0], [1.0, 0.0]]),
        "known_positive": ids([10, 11, 77], [20], [30, 11]),
        "known_weight": torch.tensor([[1.0, 0.2, 0.9], [0.5, 0.0, 0.0], [1.0, 0.4, 0.0]]),
    }


def vectors():
    return {"queries": unit(3, 0), "products": unit(7, 1)}


def queue():
    return Candidates(unit(4, 2), torch.tensor([11, 20, 88, 89]), torch.tensor([NO_ID, 5, NO_ID, 5]))


def slow_loss(query, candidate, positives, weights, negatives):
    """The formula with lists of rows, one query at a time."""
    losses = []
    for b in range(len(query)):
        rest = sum(math.exp(query[b] @ candidate[c] / TEMPERATURE) for c in negatives[b])
        scores = [(query[b] @ candidate[c] / TEMPERATURE).item() for c in positives[b]]
        terms = [w * (math.log(math.exp(s) + rest) - s) for w, s in zip(weights[b], scores, strict=True)]
        losses.append(sum(terms) / len(terms))
    return sum(losses) / len(losses)


def loss_of(terms, **options):
    parts = DualAlignmentLoss(InfoNCELoss(TEMPERATURE), **options)(terms.inter, terms.intra)
    return parts["loss"].item()


def test_a_batch_and_its_queue_become_the_loss_of_the_formula(batch):
    found = vectors()
    terms = make_terms(found, batch, queue(), LossArguments(), progress=0.0)
    candidate = torch.cat([found["products"], queue().vector_CD])
    # Left out: 11 for the queries that it answers, the queued 20 and the variants of group 5 for the second.
    negatives = [[2, 3, 4, 5, 6, 8, 9, 10], [0, 1, 2, 5, 6, 7, 9], [0, 2, 3, 4, 5, 8, 9, 10]]
    wanted = slow_loss(found["queries"], candidate, [[0, 1], [3], [6]], [[1.0, 0.2], [0.5], [1.0]], negatives)
    assert loss_of(terms) == pytest.approx(wanted, abs=1e-6)
    assert list(terms.inter) == ["given"]
    assert terms.exclusions["given"].excluded() == 3 * 11 - 3 - sum(map(len, negatives))


def test_queries_look_for_their_answers_among_the_products_of_an_earlier_model_too(batch):
    found, earlier = vectors(), unit(7, 9).requires_grad_()
    found = {name: value.requires_grad_() for name, value in found.items()}
    terms = make_terms(found, batch, queue(), LossArguments(), progress=0.0, earlier_ND=earlier)
    without = make_terms(found, batch, queue(), LossArguments(), progress=0.0)
    negatives = [[2, 3, 4, 5, 6], [0, 1, 2, 5, 6], [0, 2, 3, 4, 5]]  # the batch's, hard negatives among them; no queue
    rows = [found["queries"].detach(), earlier.detach()]
    wanted = slow_loss(*rows, [[0, 1], [3], [6]], [[1.0, 0.2], [0.5], [1.0]], negatives)
    got = terms.compatible.loss(InfoNCELoss(TEMPERATURE))
    assert got.item() == pytest.approx(wanted, abs=1e-6)
    parts = DualAlignmentLoss(InfoNCELoss(TEMPERATURE), compatible_weight=0.3)(terms.inter, compatible=terms.compatible)
    assert parts["loss"].item() == pytest.approx(loss_of(without) + 0.3 * wanted, abs=1e-6)
    assert without.compatible is None
    got.backward()
    assert found["queries"].grad.abs().min() > 0
    assert found["products"].grad is None
    assert earlier.grad is None


def test_an_earlier_model_of_another_width_is_refused(batch):
    with pytest.raises(ValueError, match="earlier_CD: found width 4; expected 6"):
        make_terms(vectors(), batch, None, LossArguments(), progress=0.0, earlier_ND=torch.ones(7, 4))


def test_known_positives_of_other_pairs_become_positives_with_their_weight(batch):
    found = vectors()
    terms = make_terms(found, batch, queue(), LossArguments(several_positives=True), progress=0.0)
    candidate = torch.cat([found["products"], queue().vector_CD])
    negatives = [[2, 3, 4, 5, 6, 8, 9, 10], [0, 1, 2, 5, 6, 7, 9], [0, 2, 3, 4, 5, 8, 9, 10]]
    positives, weights = [[0, 1], [3], [1, 6]], [[1.0, 0.2], [0.5], [0.4, 1.0]]
    wanted = slow_loss(found["queries"], candidate, positives, weights, negatives)
    assert loss_of(terms) == pytest.approx(wanted, abs=1e-6)


def test_without_the_keys_of_several_positives_the_target_is_the_positive(batch):
    found = vectors()
    plain = {name: value for name, value in batch.items() if not name.startswith(("positive", "known"))}
    for several in (False, True):
        terms = make_terms(found, plain, None, LossArguments(several_positives=several), progress=0.0)
        assert terms.inter["given"].target_B.tolist() == [[0], [3], [6]]
        assert terms.inter["given"].weight_B.tolist() == [[1.0], [1.0], [1.0]]


def test_negatives_nearer_than_the_positive_by_a_margin_are_left_out(batch):
    found = vectors()
    term = make_terms(found, batch, None, LossArguments(negative_margin=0.0), progress=0.0).inter["given"]
    similarity = found["queries"] @ found["products"].T
    best = torch.stack([similarity[0, :2].max(), similarity[1, 3], similarity[2, 6]])
    left = [[c for c in range(7) if similarity[b, c] <= best[b]] for b in range(3)]
    known = [[2, 3, 4, 5, 6], [0, 1, 2, 5, 6], [0, 2, 3, 4, 5]]
    negatives = [[c for c in known[b] if c in left[b]] for b in range(3)]
    assert sum(map(len, negatives)) < sum(map(len, known))
    wanted = slow_loss(found["queries"], found["products"], [[0, 1], [3], [6]], [[1.0, 0.2], [0.5], [1.0]], negatives)
    assert term.loss(InfoNCELoss(TEMPERATURE)).item() == pytest.approx(wanted, abs=1e-6)


def test_the_filter_weighs_each_triplet_by_its_nearest_own_hard_negative(batch):
    found, sample_filter = vectors(), SampleFilter(start=0.3, end=0.0, schedule="linear", kappa=5.0)
    terms = make_terms(found, batch, None, LossArguments(), 0.5, sample_filter)
    similarity = found["queries"] @ found["products"].T
    # Own hard negatives: 12 of the first (11 answers it), 22 of the second (21 is a variant), none of the third.
    margins = [similarity[0, 0] - similarity[0, 2], similarity[1, 3] - similarity[1, 5]]
    trust = [1 / (1 + math.exp(-5.0 * (margin.item() - 0.15))) for margin in margins]
    weights = [min(1.0, phi / 0.6) for phi in trust] + [1.0]
    got = terms.inter["given"].weight_B[:, 0] / batch["positive_weight"][:, 0]
    assert got.tolist() == pytest.approx(weights, abs=1e-6)
    assert terms.measures["filtered_share"].tolist() == [sum(phi < 0.6 for phi in trust), 2]
    assert 0 < min(weights) < 1


@pytest.fixture
def dual(batch):
    """The first query is text, the second both, the third an image; products 10, 20, 21 and 30 have both."""
    forms = {"has_text": torch.tensor([1, 1, 0]).bool(), "has_image": torch.tensor([0, 1, 1]).bool()}
    forms |= {name: {"rows": torch.tensor([1]), "inputs": {}} for name in ("t", "i")}
    has_image = torch.tensor([1, 0, 0, 1, 1, 0, 1]).bool()
    products = {"has_text": torch.ones(7).bool(), "has_image": has_image}
    products |= {name: {"rows": torch.tensor([0, 3, 4, 6]), "inputs": {}} for name in ("t", "i")}
    found = vectors() | {"queries/t": unit(1, 3), "queries/i": unit(1, 4)}
    found |= {"products/t": unit(4, 5), "products/i": unit(4, 6)}
    return found, batch | {"query_forms": forms, "product_forms": products}


def test_each_form_of_the_queries_looks_for_the_products_with_all_they_have(dual):
    found, inputs = dual
    terms = make_terms(found, inputs, None, LossArguments(dual_alignment=True, intra_weight=0), progress=0.0)
    known = [[2, 3, 4, 5, 6], [0, 1, 2, 5, 6], [0, 2, 3, 4, 5]]
    positives, weights = [[0, 1], [3], [6]], [[1.0, 0.2], [0.5], [1.0]]

    def wanted(query, rows):
        chosen = [[values[row] for row in rows] for values in (positives, weights, known)]
        return slow_loss(query, found["products"], *chosen)

    queries = found["queries"]
    expected = {
        "t": wanted(torch.cat([found["queries/t"], queries[:1]]), [1, 0]),
        "i": wanted(torch.cat([found["queries/i"], queries[2:]]), [1, 2]),
        "mm": wanted(queries[1:2], [1]),
    }
    contrastive = InfoNCELoss(TEMPERATURE)
    assert {form: term.loss(contrastive).item() for form, term in terms.inter.items()} == pytest.approx(
        expected, abs=1e-6
    )
    assert terms.intra == []


@pytest.mark.parametrize("symmetric", [False, True])
def test_images_look_for_texts_of_other_products_only(dual, symmetric):
    found, inputs = dual
    options = LossArguments(dual_alignment=True, symmetric_intra=symmetric)
    terms = make_terms(found, inputs, None, options, progress=0.0)
    image, text = found["products/i"], found["products/t"]
    negatives = [[1, 2, 3], [0, 3], [0, 3], [0, 1, 2]]  # 20 and 21 are variants
    own, ones = [[0], [1], [2], [3]], [[1.0]] * 4
    wanted = [slow_loss(image, text, own, ones, negatives), slow_loss(text, image, own, ones, negatives)]
    got = [term.loss(InfoNCELoss(TEMPERATURE)).item() for term in terms.intra]
    assert got == pytest.approx(wanted[: 1 + symmetric], abs=1e-6)


def test_a_form_that_no_query_has_is_no_term(dual):
    found, inputs = dual
    nothing = torch.zeros(0, dtype=torch.int64)
    forms = {"has_text": torch.ones(3).bool(), "has_image": torch.zeros(3).bool()}
    forms |= {name: {"rows": nothing, "inputs": None} for name in ("t", "i")}
    products = {name: {"rows": nothing, "inputs": None} for name in ("t", "i")}
    found = {name: found[name] for name in ("queries", "products")}
    inputs = inputs | {"query_forms": forms, "product_forms": inputs["product_forms"] | products}
    terms = make_terms(found, inputs, None, LossArguments(dual_alignment=True), progress=0.0)
    assert list(terms.inter) == ["t"]
    assert terms.intra == []


def test_gates_carry_the_place_of_each_query_s_form(dual):
    found, inputs = dual
    gates = {
        f"{name}/gates": torch.rand(rows, 1, 2) for name, rows in (("queries", 3), ("queries/t", 1), ("queries/i", 1))
    }
    terms = make_terms(found | gates, inputs, None, LossArguments(dual_alignment=True, intra_weight=0), progress=0.0)
    assert terms.gates[1].tolist() == [0, 2, 1, 0, 1]
    assert torch.equal(terms.gates[0], torch.cat(list(gates.values())))
    assert make_terms(found | gates, inputs, None, LossArguments(), progress=0.0).gates is None


class Largest(TorchDispatchMode):
    """Keeps the size of the largest tensor that any operation makes."""

    def __init__(self):
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        made = result if isinstance(result, tuple | list) else [result]
        self.elements = max([self.elements, *(one.numel() for one in made if isinstance(one, torch.Tensor))])
        return result


@pytest.mark.parametrize("block_size", [64, None])
def test_a_streamed_step_makes_nothing_of_the_size_queries_times_candidates(block_size):
    queries, queued, step = 128, 2048, LossArguments(several_positives=True, negative_margin=0.1)
    target = torch.arange(queries) * 2
    product = torch.arange(2 * queries) % 200
    inputs = {
        "target": target,
        "product": product,
        "group": torch.full((2 * queries,), NO_ID),
        "query_group": torch.full((queries,), NO_ID),
        "other": torch.arange(queries)[:, None] % 100,
        "negative": torch.zeros((queries, 0), dtype=torch.int64),
        "positive": target[:, None],
        "positive_weight": torch.ones(queries, 1),
        "known_positive": torch.stack([product[target], torch.arange(queries) % 100], dim=1),
        "known_weight": torch.full((queries, 2), 0.5),
    }
    found = {"queries": unit(queries, 0).requires_grad_(), "products": unit(2 * queries, 1).requires_grad_()}
    past = Candidates(unit(queued, 2), torch.arange(queued) % 300, torch.full((queued,), NO_ID))
    with Largest() as largest:
        terms = make_terms(found, inputs, past, step, 0.5, SampleFilter())
        loss = DualAlignmentLoss(InfoNCELoss(TEMPERATURE, block_size))(terms.inter)["loss"]
        loss.backward()
        facts = terms.exclusions["given"].facts
        hits(found["queries"].detach(), terms.batch, facts, terms.target_B, block_size or 4096)
    assert (largest.elements >= queries * queued) == (block_size is None)
    if block_size is not None:
        assert largest.elements <= max(queries * block_size, queued * WIDTH)


@pytest.mark.parametrize("block_size", [2, 7, 100])
def test_a_hit_is_an_answer_nearer_than_every_other_valid_candidate(batch, block_size):
    found = vectors()
    terms = make_terms(found, batch, None, LossArguments(), progress=0.0)
    similarity = found["queries"] @ found["products"].T
    valid = [[2, 3, 4, 5, 6], [0, 1, 2, 5, 6], [0, 2, 3, 4, 5]]
    wanted = [bool(similarity[b, t] > similarity[b, valid[b]].max()) for b, t in enumerate([0, 3, 6])]
    facts = terms.exclusions["given"].facts
    assert hits(found["queries"], terms.batch, facts, terms.target_B, block_size).tolist() == wanted
    easy = found["products"][batch["target"]]
    assert hits(easy, terms.batch, facts, terms.target_B, block_size).all()
    same = Candidates(torch.ones(7, WIDTH), terms.batch.product_C, terms.batch.group_C)
    assert not hits(torch.ones(3, WIDTH), same, facts, terms.target_B, block_size).any()
