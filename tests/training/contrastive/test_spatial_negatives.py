"""The two halves of the extra negatives, each switched off alone: those of other processes, and those of past steps."""

import pytest
import torch
from launched import ROOT, run
from tiny_runs import write_recipe

from product_data.atomic_files import read_lines
from product_data.catalogue.making import write_catalogue

# Two processes with unlike batches; only the first has products with text and picture. Writes its loss, the gradient averaged
# over the processes, what a slow reference without any exchange gives, and the batch that a queue would keep.
SCRIPT = """
import sys
import torch, torch.distributed as dist
from torch.nn.functional import cross_entropy, normalize
from training.contrastive.terms import make_terms
from training.recipe.loss import LossArguments
from training.losses.dual_alignment import DualAlignmentLoss
from training.losses.info_nce import InfoNCELoss
from training.batches.negatives import NO_ID, Candidates

dist.init_process_group("gloo")
rank, forms = dist.get_rank(), sys.argv[2] == "forms"
weight = torch.randn(5, 4, generator=torch.Generator().manual_seed(9)).requires_grad_()
pairs = [3, 2][rank]

def encode(rows, seed):
    given = torch.randn(rows, 5, generator=torch.Generator().manual_seed(10 * rank + seed))
    return normalize(given @ weight, dim=1)

both = torch.arange(2 * pairs if rank == 0 else 0)
ids = torch.arange(2 * pairs) + 100 * rank
inputs = {
    "target": torch.arange(pairs) * 2, "product": ids, "group": torch.full_like(ids, NO_ID),
    "query_group": torch.full((pairs,), NO_ID), "other": torch.zeros(pairs, 0, dtype=torch.int64),
    "negative": torch.zeros(pairs, 0, dtype=torch.int64),
    "query_forms": {"has_text": torch.ones(pairs, dtype=bool), "has_image": torch.ones(pairs, dtype=bool)},
    "product_forms": {"t": {"rows": both}, "i": {"rows": both}},
}
inputs["query_forms"] |= {form: {"rows": torch.arange(pairs)} for form in ("t", "i")}
vectors = {"queries": encode(pairs, 1), "products": encode(2 * pairs, 2)}
if forms:
    vectors |= {"queries/t": encode(pairs, 3), "queries/i": encode(pairs, 4)}
    if len(both):
        vectors |= {"products/t": encode(len(both), 5), "products/i": encode(len(both), 6)}
past = Candidates(normalize(torch.randn(4, 4, generator=torch.Generator().manual_seed(rank)), dim=1),
                  torch.arange(4) + 1000, torch.full((4,), NO_ID))
options = LossArguments(dual_alignment=forms, symmetric_intra=forms, spatial_negatives=False)
terms = make_terms(vectors, inputs, past, options, 0.0)
loss = DualAlignmentLoss(InfoNCELoss(0.1), symmetric=forms)(terms.inter, terms.intra)["loss"]
loss.backward(retain_graph=True)
gradient = weight.grad.clone()
dist.all_reduce(gradient)

def own(query, candidate, target):
    return cross_entropy(query @ candidate.T / 0.1, target, reduction="sum")

candidates = torch.cat([vectors["products"], past.vector_CD])
names = ["queries", "queries/t", "queries/i"] if forms else ["queries"]
slow = sum(own(vectors[name], candidates, inputs["target"]) for name in names) / 5
if forms and len(both):
    text, image = vectors["products/t"], vectors["products/i"]
    slow = slow + (own(image, text, both) + own(text, image, both)) / 2 / len(both)
weight.grad = None
slow.backward()
wanted = weight.grad.clone()
dist.all_reduce(wanted)
torch.save({"gradient": gradient / 2, "wanted": wanted, "kept": terms.batch.product_C, "own": ids}, f"{sys.argv[1]}/{rank}.pt")
dist.destroy_process_group()
"""


@pytest.mark.parametrize("kind", ["given", "forms"])
def test_without_the_spatial_half_two_processes_learn_from_their_own_candidates_alone(kind, tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    run(tmp_path / "script.py", tmp_path, kind, processes=2)
    for rank in (0, 1):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert found["wanted"].abs().max() > 0.01
        assert torch.allclose(found["gradient"], found["wanted"], atol=1e-6)
        assert torch.equal(found["kept"], found["own"])


@pytest.mark.parametrize("spatial", [False, True])
def test_a_training_keeps_in_each_queue_what_the_spatial_half_allows(spatial, tiny_moon, tmp_path):
    write_catalogue(tmp_path / "shop", products=40, image_size=64, progress=False)
    values = {"data": [str(tmp_path / "shop")], "catalogue": None, "query_mix": {"t": 1}, "product_mix": {"t": 1}}
    values |= {"spatial_negatives": spatial, "queue_steps": 1, "max_steps": 2, "save_total_limit": 4}
    recipe = write_recipe(tmp_path / "recipe.yaml", base=str(tiny_moon("qwen3_vl")), **values)
    output = tmp_path / "run"
    run(ROOT / "training" / "train.py", recipe, "--output_dir", output, processes=2)
    own, other = (
        torch.load(output / "checkpoint-2" / f"contrastive_state_{rank}.pt", weights_only=True)["queue"]["steps"][0]
        for rank in (0, 1)
    )
    count = 4 * (2 if spatial else 1)  # two pairs of a process, each a positive and a hard negative
    assert len(own["product_C"]) == len(other["product_C"]) == count
    assert torch.equal(own["vector_CD"], other["vector_CD"]) == spatial
    first, second = (line["negatives"] + 1 for line in read_lines(output / "metrics.jsonl"))
    masked = [line["masked_share"] for line in read_lines(output / "metrics.jsonl")]
    assert first == pytest.approx(count * (1 - masked[0]), abs=1e-6)
    assert second == pytest.approx(2 * count * (1 - masked[1]), abs=1e-6)
