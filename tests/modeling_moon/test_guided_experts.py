"""The guided mixture against a slow reference written from its formula (MOON §3.1), token by token."""

import pytest
import torch
from torch.nn import functional
from transformers import AutoConfig

from modeling_moon import MoonConfig
from modeling_moon.modeling_moon import MoonGuidedMoE
from modeling_moon.routing_moon import find_guided
from modeling_moon.tokens_moon import aspect_ids_from_markers

MARKERS = {
    "category_start_token_id": 10,
    "category_end_token_id": 11,
    "attribute_start_token_id": 12,
    "attribute_end_token_id": 13,
}


def make_config(tiny_base, **overrides):
    vlm_config = AutoConfig.from_pretrained(tiny_base("qwen3_vl"))
    return MoonConfig.moon1(vlm_config, **({"embedding_dim": 32} | MARKERS | overrides))


def make_mixture(config, implementation):
    config.text_config._experts_implementation = implementation
    mixture = MoonGuidedMoE(config)
    torch.manual_seed(0)
    for parameter in mixture.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return mixture


def slow_mixture(mixture, x_H, aspect, top_k):
    """One token: y = Σ g_n f_n over the top free experts and the aspect's expert, weights renormalised."""
    gates_E = functional.softmax(mixture.router.weight @ x_H, dim=0)
    free = mixture.num_experts - 2
    active = sorted(range(free), key=lambda n: -gates_E[n].item())[:top_k]
    if aspect:
        active.append(free + aspect - 1)
    total = sum(gates_E[n] for n in active)
    if len(active) == 1 < free:
        total = total.detach()  # the straight-through estimate
    output_H = torch.zeros_like(x_H)
    for n in active:
        gate, up = (mixture.experts.gate_up_proj[n] @ x_H).chunk(2)
        output_H = output_H + gates_E[n] / total * (mixture.experts.down_proj[n] @ (functional.silu(gate) * up))
    return output_H


@pytest.mark.parametrize("implementation", ["eager", "grouped_mm", "batched_mm"])
@pytest.mark.parametrize(("num_experts", "top_k"), [(4, 2), (6, 3), (3, 1), (5, 1)])
def test_output_and_gradients_equal_the_formula(tiny_base, implementation, num_experts, top_k):
    config = make_config(tiny_base, num_experts=num_experts, num_experts_per_token=top_k)
    mixture = make_mixture(config, implementation)
    hidden = torch.randn(2, 5, 64, requires_grad=True)
    aspects = torch.tensor([[0, 1, 1, 2, 0], [2, 2, 0, 0, 1]])
    slow = torch.stack(
        [slow_mixture(mixture, x, int(a), top_k) for x, a in zip(hidden.view(-1, 64), aspects.view(-1), strict=True)]
    ).view_as(hidden)
    fast = mixture(hidden, find_guided(aspects))
    torch.testing.assert_close(fast, slow, rtol=1e-5, atol=1e-5)
    weights = [hidden, *mixture.parameters()]
    target = torch.randn_like(slow)
    for ours, reference in zip(
        torch.autograd.grad((fast * target).sum(), weights),
        torch.autograd.grad((slow * target).sum(), weights, allow_unused=True),
        strict=True,
    ):
        torch.testing.assert_close(
            ours, torch.zeros_like(ours) if reference is None else reference, rtol=1e-4, atol=1e-5
        )


def test_guided_experts_see_only_their_own_tokens(tiny_base):
    mixture = make_mixture(make_config(tiny_base), "grouped_mm")
    hidden = torch.randn(1, 4, 64)
    aspects = torch.tensor([[0, 1, 2, 0]])
    before = mixture(hidden, find_guided(aspects))
    with torch.no_grad():
        mixture.experts.down_proj[2] += 1.0
    after_category = mixture(hidden, find_guided(aspects))
    assert (before != after_category).any(dim=-1).tolist() == [[False, True, False, False]]
    with torch.no_grad():
        mixture.experts.down_proj[3] += 1.0
    after_attribute = mixture(hidden, find_guided(aspects))
    assert (after_category != after_attribute).any(dim=-1).tolist() == [[False, False, True, False]]


@pytest.mark.parametrize("top_k", [1, 2])
def test_the_router_gets_a_gradient_from_tokens_outside_the_spans(tiny_base, top_k):
    mixture = make_mixture(make_config(tiny_base, num_experts_per_token=top_k), "grouped_mm")
    mixture(torch.randn(1, 6, 64), find_guided(torch.zeros(1, 6, dtype=torch.long))).square().sum().backward()
    assert mixture.router.weight.grad[:2].abs().min() > 0


def slow_aspects(ids):
    """Walk along the row: a start opens its aspect, any end closes it."""
    aspects, opened = [], 0
    for token in ids:
        if token in (10, 12):
            opened = 1 if token == 10 else 2
            aspects.append(0)
        elif token in (11, 13):
            opened = 0
            aspects.append(0)
        else:
            aspects.append(opened)
    return aspects


def test_aspects_are_read_from_the_markers(tiny_base):
    config = make_config(tiny_base)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(8, 20, (64, 24), generator=generator)
    expected = torch.tensor([slow_aspects(row) for row in ids.tolist()])
    assert (aspect_ids_from_markers(ids, config) == expected).all()
    assert set(expected.unique().tolist()) == {0, 1, 2}


def test_aspects_of_a_prefix_do_not_depend_on_what_follows(tiny_base):
    config = make_config(tiny_base)
    ids = torch.tensor([[5, 10, 6, 7, 11, 5, 12, 6]])
    whole = aspect_ids_from_markers(ids, config)
    for length in range(1, 9):
        assert (aspect_ids_from_markers(ids[:, :length], config) == whole[:, :length]).all()
