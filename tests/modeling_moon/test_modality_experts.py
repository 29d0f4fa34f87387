"""The modality-driven mixture, ω, L_sparsity and L_aux against slow references written from MOON2.0, token by token."""

import math

import pytest
import torch
from closeness import assert_same_function
from torch.nn import functional
from transformers import AutoConfig

from modeling_moon import MoonConfig, MoonModel
from modeling_moon.modeling_moon import MoonModalityMoE
from modeling_moon.routing_moon import load_balancing_loss
from processing_moon import MoonProcessor

PRODUCTS = [
    {"title": "red running shoes", "category": ["Fashion", "Shoes"], "attributes": {"colour": "red"}},
    {"title": "a mug"},
    {"title": "brown leather tote bag, gold buckle"},
    {"title": "same in green", "category": "Home > Mugs"},
]


def make_mixture(tiny_base, implementation, num_experts, top_k):
    vlm_config = AutoConfig.from_pretrained(tiny_base("qwen3_vl"))
    config = MoonConfig.moon2(
        vlm_config, embedding_dim=32, num_experts=num_experts, num_experts_per_token=top_k, objectives=["a", "b"]
    )
    config.text_config._experts_implementation = implementation
    mixture = MoonModalityMoE(config)
    torch.manual_seed(0)
    for parameter in mixture.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return mixture


def slow_gates(mixture, x_H):
    """G̃ of one token: the k largest of softmax(W_g h), renormalised."""
    gate_E = functional.softmax(mixture.router.weight @ x_H, dim=0)
    kept = sorted(range(mixture.num_experts), key=lambda z: -gate_E[z].item())[: mixture.top_k]
    total = sum(gate_E[z] for z in kept)
    if mixture.top_k == 1:
        total = total.detach()
    return {z: gate_E[z] / total for z in kept}


def slow_mixture(mixture, x_H):
    output_H = torch.zeros_like(x_H)
    for z, weight in slow_gates(mixture, x_H).items():
        gate, up = (mixture.experts.gate_up_proj[z] @ x_H).chunk(2)
        output_H = output_H + weight * (mixture.experts.down_proj[z] @ (functional.silu(gate) * up))
    return output_H


@pytest.mark.parametrize("implementation", ["eager", "grouped_mm"])
@pytest.mark.parametrize(("num_experts", "top_k"), [(4, 2), (5, 3), (3, 1), (2, 2)])
def test_output_and_gradients_equal_the_formula(tiny_base, implementation, num_experts, top_k):
    mixture = make_mixture(tiny_base, implementation, num_experts, top_k)
    hidden = torch.randn(2, 5, 64, requires_grad=True)
    slow = torch.stack([slow_mixture(mixture, x) for x in hidden.view(-1, 64)]).view_as(hidden)
    fast = mixture(hidden)
    weights = [hidden, mixture.router.weight, mixture.experts.gate_up_proj, mixture.experts.down_proj]
    assert_same_function(fast, slow, weights)


@pytest.fixture(scope="module")
def encoded(tiny_moon):
    """A trained-like moon2, its batch and its output, with preferences that differ."""
    folder = tiny_moon("qwen3_vl", preset="moon2", trained=True)
    model = MoonModel.from_pretrained(folder).eval()
    batch = MoonProcessor.from_pretrained(folder)(products=PRODUCTS, return_tensors="pt", padding_side="right")
    return model, batch, model(**batch, output_router_stats=True)


def gates_by_layer(model, batch):
    """What each mixture's `route` is given and gives: lists over layers of (B·T, H) inputs."""
    seen = []
    hooks = [
        model.vlm.language_model.layers[layer].mlp.register_forward_pre_hook(
            lambda module, inputs: seen.append((module, inputs[0].detach().reshape(-1, 64)))
        )
        for layer in model.config.mixture_layers
    ]
    with torch.no_grad():
        model(**batch)
    for hook in hooks:
        hook.remove()
    return seen


def test_expert_gates_load_and_the_balancing_loss_equal_the_formulas(encoded):
    model, batch, output = encoded
    mask = batch["attention_mask"].bool()
    losses = []
    for number, (mixture, states) in enumerate(gates_by_layer(model, batch)):
        attended = states[mask.reshape(-1)]
        rows = [gates for x in attended for gates in [slow_gates(mixture, x)]]
        used = torch.tensor([[float(z in gates) for z in range(4)] for gates in rows])
        kept = torch.tensor([[float(gates.get(z, 0.0)) for z in range(4)] for gates in rows])
        torch.testing.assert_close(output.expert_load[number], used.mean(dim=0))
        owner = mask.nonzero()[:, 0]
        for row in range(len(PRODUCTS)):
            torch.testing.assert_close(
                output.expert_gates[row, number], kept[owner == row].mean(dim=0), rtol=1e-4, atol=1e-5
            )
        probability = functional.softmax(attended @ mixture.router.weight.T, dim=-1).mean(dim=0)
        share = used.sum(dim=0) / used.sum()
        losses.append(4 * sum(share[z] * probability[z] for z in range(4)))
    torch.testing.assert_close(output.router_loss, torch.stack(losses).mean(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(output.expert_gates.sum(dim=-1), torch.ones(4, 2))


def test_the_weights_of_objectives_and_the_sparsity_equal_the_formulas(encoded):
    model, _, output = encoded
    objective = torch.tensor([2, 0, 2, 0])
    omega = model.objective_weights(output.expert_gates, objective)
    layers = [model.vlm.language_model.layers[layer].mlp.preference for layer in model.config.mixture_layers]
    expected = torch.zeros(3)
    for m in range(3):
        samples = [b for b in range(4) if objective[b] == m]
        for b in samples:
            for number, preference in enumerate(layers):
                p = torch.stack([functional.softmax(preference[z], dim=0) for z in range(4)])
                score = sum(p[z, m] * output.expert_gates[b, number, z] for z in range(4))
                expected[m] = expected[m] + score.detach() / len(samples) / len(layers)
    torch.testing.assert_close(omega, expected)
    assert omega[1] == 0
    entropies = []
    for preference in layers:
        for z in range(4):
            p = functional.softmax(preference[z], dim=0)
            entropies.append(-sum(float(q) * math.log(float(q)) for q in p))
    assert model.preference_entropy().item() == pytest.approx(sum(entropies) / len(entropies), rel=1e-5)


def test_weights_and_losses_teach_the_router_and_the_preferences(tiny_moon):
    folder = tiny_moon("qwen3_vl", preset="moon2", trained=True)
    gradients = []
    for checkpointing in (False, True):
        model = MoonModel.from_pretrained(folder).train()
        if checkpointing:
            model.gradient_checkpointing_enable()
        batch = MoonProcessor.from_pretrained(folder)(products=PRODUCTS, return_tensors="pt")
        output = model(**batch, output_router_stats=True)
        omega = model.objective_weights(output.expert_gates, torch.tensor([0, 1, 2, 0]))
        (omega @ torch.tensor([1.0, 2.0, 3.0]) + output.router_loss + model.preference_entropy()).backward()
        gradients.append({n: p.grad for n, p in model.named_parameters() if "router" in n or "preference" in n})
    for name, gradient in gradients[0].items():
        assert gradient.abs().sum() > 0, name
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-4, atol=1e-7, msg=name)


def test_fresh_preferences_weigh_all_objectives_alike(tiny_moon):
    folder = tiny_moon("qwen3_vl", preset="moon2")
    model = MoonModel.from_pretrained(folder)
    batch = MoonProcessor.from_pretrained(folder)(products=PRODUCTS, return_tensors="pt")
    output = model(**batch, output_router_stats=True)
    omega = model.objective_weights(output.expert_gates, torch.tensor([0, 1, 2, 0]))
    torch.testing.assert_close(omega, torch.full((3,), 1 / 3))
    assert model.preference_entropy().item() == pytest.approx(math.log(3))


def test_a_balanced_router_costs_one_and_a_collapsed_one_the_number_of_experts():
    eye = torch.eye(4)
    assert load_balancing_loss(torch.full((8, 4), 0.25), eye.repeat(2, 1), 4).item() == pytest.approx(1)
    assert load_balancing_loss(eye[[0] * 8], eye[[0] * 8], 4).item() == pytest.approx(4)
    guided = torch.tensor([[0.5, 0.1, 0.4], [0.1, 0.5, 0.4]])  # the last expert is guided: it does not count
    used = torch.tensor([[1.0, 0.0, 1.0], [0.0, 1.0, 0.0]])
    assert load_balancing_loss(guided, used, 2).item() == pytest.approx(1)


@pytest.mark.parametrize("call", ["objective_weights", "preference_entropy"])
def test_a_model_without_preferences_says_so(tiny_moon, call):
    model = MoonModel.from_pretrained(tiny_moon("qwen3_vl"))
    arguments = [torch.ones(1, 2, 4) / 4, torch.zeros(1, dtype=torch.long)] if call == "objective_weights" else []
    with pytest.raises(
        ValueError, match=r"expert_routing='guided' in layers \[0, 1\] has no preferences; expected 'modality'"
    ):
        getattr(model, call)(*arguments)
