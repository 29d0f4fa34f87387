"""Each switch of the configuration changes what it should and nothing else: one trained moon3, one changed argument."""

import pytest
import torch
from pictures import noise

from modeling_moon import MoonConfig, MoonModel
from processing_moon import MoonProcessor

PRODUCTS = [
    {"title": "red shoes", "category": ["Shoes"], "attributes": {"colour": "red"}, "images": noise(96, 64)},
    {"title": "a mug without a picture", "category": "Home > Mugs"},
]


class Run:
    """A model of the trained weights under a configuration with some arguments changed, and what it gives."""

    def __init__(self, folder, **changes):
        config = MoonConfig.from_pretrained(folder)
        config = MoonConfig.from_dict(config.to_dict() | changes)
        self.model, loading = MoonModel.from_pretrained(
            folder, config=config, output_loading_info=True, ignore_mismatched_sizes=True
        )
        self.fresh = set(loading["missing_keys"]) | {key for key, *_ in loading["mismatched_keys"]}
        self.left = set(loading["unexpected_keys"])
        self.config = config
        batch = MoonProcessor.from_pretrained(folder)(products=PRODUCTS, return_tensors="pt")
        self.is_image = batch["input_ids"] == config.image_token_id
        self.attended = batch["attention_mask"].bool()
        with torch.no_grad():
            self.out = self.model.eval()(**batch, output_hidden_states=True, output_router_stats=True)

    def states(self, layer):
        """Hidden states behind a layer, -1 for what goes into the first one."""
        return self.out.hidden_states[layer + 1][self.attended]


@pytest.fixture(scope="module", params=["qwen3_vl", "qwen2_5_vl"])
def trained(request, tiny_moon):
    folder = tiny_moon(request.param, preset="moon3", trained=True)
    return folder, Run(folder)


def same(ours, theirs):
    return torch.allclose(ours, theirs, rtol=1e-5, atol=1e-6)


def parts(names):
    return {
        part
        for name in names
        for part in ("preference", "fire", "fusion", "projection", "detail_mergers", "router", "experts", "mlp")
        if part in name.split(".")
    }


@pytest.mark.parametrize("readout", ["mean", "last"])
def test_readout_changes_the_vector_only(trained, readout):
    folder, plain = trained
    run = Run(folder, readout=readout, max_reasoning_tokens=None)
    assert all(same(run.states(layer), plain.states(layer)) for layer in (-1, 0, 1))
    # the last attended token is the <emb> that the prompt ends with
    assert same(run.out.embeddings, plain.out.embeddings) == (readout == "last")
    assert not run.fresh | run.left


def test_fusion_changes_the_vector_and_the_gates_only(trained):
    folder, plain = trained
    run = Run(folder, fusion=False)
    assert all(same(run.states(layer), plain.states(layer)) for layer in (-1, 0, 1))
    assert run.out.modality_gates is None
    assert not same(run.out.embeddings, plain.out.embeddings)
    assert (parts(run.left), run.fresh) == ({"fusion"}, set())


def test_fusion_source_changes_the_vector_and_the_gates_only(trained):
    folder, plain = trained
    run = Run(folder, fusion_source="raw")
    assert all(same(run.states(layer), plain.states(layer)) for layer in (-1, 0, 1))
    assert not same(run.out.modality_gates, plain.out.modality_gates)
    assert not same(run.out.embeddings, plain.out.embeddings)
    assert run.fresh == {"fusion.raw_norm.weight", "fusion.raw_norm.bias"}


def test_fusion_heads_change_the_gates(trained):
    folder, plain = trained
    run = Run(folder, fusion_heads=4)
    assert run.out.modality_gates.shape == (2, 4, 3)
    assert same(run.states(1), plain.states(1))
    assert run.fresh == {"fusion.gate_out.weight"}


def test_fire_layers_change_what_follows_their_layer_only(trained):
    folder, plain = trained
    run = Run(folder, fire_layers=[0])
    assert same(run.states(0), plain.states(0))
    assert not same(run.out.last_hidden_state, plain.out.last_hidden_state)
    assert all(".layers.1.fire." in name for name in run.left)
    assert not run.fresh
    none = Run(folder, fire_layers=None)
    assert same(none.states(-1), plain.states(-1))
    assert not same(none.states(0), plain.states(0))
    assert parts(none.left) <= {"fire", "detail_mergers"}


def test_fire_vision_blocks_change_image_tokens_first(trained):
    folder, plain = trained
    run = Run(folder, fire_vision_blocks=[0])
    moved = ~torch.isclose(run.out.hidden_states[1], plain.out.hidden_states[1], rtol=1e-5, atol=1e-6).all(dim=-1)
    assert torch.equal(moved & run.attended, run.is_image)
    assert parts(run.fresh) <= {"detail_mergers", "fire"}


def test_fire_rank_changes_the_size_of_its_networks_only(trained):
    folder, plain = trained
    run = Run(folder, fire_rank=4)
    assert parts(run.fresh) == {"fire"}
    assert all(name.endswith(("gate_in.weight", "gate_out.weight", "down.weight", "up.weight")) for name in run.fresh)
    assert run.model.vlm.language_model.layers[0].fire.down.weight.shape == (4, 64)


def test_experts_per_token_change_how_many_are_used(trained):
    folder, plain = trained
    run = Run(folder, num_experts_per_token=1)
    assert not run.fresh | run.left
    assert same(run.states(-1), plain.states(-1))
    torch.testing.assert_close(run.out.expert_load[:, :2].sum(dim=1), torch.ones(2))
    torch.testing.assert_close(plain.out.expert_load[:, :2].sum(dim=1), torch.full((2,), 2.0))
    assert same(run.out.expert_load[:, 2:], plain.out.expert_load[:, 2:])


def test_the_number_of_experts_changes_the_size_of_mixtures_only(trained):
    folder, _ = trained
    run = Run(folder, num_experts=5)
    assert run.out.expert_load.shape == (2, 5)
    assert all(name.endswith(("router.weight", "experts.gate_up_proj", "experts.down_proj")) for name in run.fresh)


def test_moe_layers_choose_the_layers_that_are_mixtures(trained):
    folder, plain = trained
    run = Run(folder, moe_layers=[1])
    layers = run.model.vlm.language_model.layers
    assert [layer.is_mixture for layer in layers] == [False, True]
    assert run.out.expert_load.shape == run.out.expert_gates.shape[1:] == (1, 4)
    assert all(".layers.0.mlp." in name for name in run.fresh | run.left)


def test_routing_by_modality_ignores_markers_and_adds_preferences_only(trained):
    folder, plain = trained
    run = Run(folder, expert_routing="modality", num_experts_per_token=4)
    assert parts(run.fresh) == {"preference", "mlp"}
    assert not run.left
    torch.testing.assert_close(run.out.expert_load, torch.ones(2, 4))
    assert (plain.out.expert_load[:, 2:] < 1).all()


def test_objectives_change_the_columns_of_the_preferences_only(trained):
    folder, _ = trained
    runs = [Run(folder, expert_routing="modality", objectives=names) for names in (["a"], ["a", "b", "c", "d"])]
    assert same(runs[0].out.embeddings, runs[1].out.embeddings)
    widths = [run.model.vlm.language_model.layers[0].mlp.preference.shape[1] for run in runs]
    assert widths == [1, 4]


def test_without_experts_the_layers_are_dense(trained):
    folder, _ = trained
    run = Run(folder, expert_routing="none")
    assert (run.out.expert_load, run.out.expert_gates, run.out.router_loss) == (None, None, None)
    assert parts(run.left | run.fresh) <= {"router", "experts", "mlp"}


def test_without_markers_no_token_is_guided(trained):
    folder, plain = trained
    ids = {f"{aspect}_{side}_token_id": None for aspect in ("category", "attribute") for side in ("start", "end")}
    run = Run(folder, **ids)
    assert not run.out.expert_load[:, 2:].any()
    assert plain.out.expert_load[:, 2:].all()
    assert not run.fresh | run.left


def test_prefixes_are_added_and_nothing_else(trained):
    folder, plain = trained
    run = Run(folder, matryoshka_dims=[16, 4])
    assert torch.equal(run.out.embeddings, plain.out.embeddings)
    assert [prefix.shape[1] for prefix in run.out.matryoshka_embeddings] == [4, 16]
    assert plain.out.matryoshka_embeddings is None


def test_the_size_of_the_vector_changes_the_projection_only(trained):
    folder, plain = trained
    run = Run(folder, embedding_dim=None)
    assert same(run.out.last_hidden_state, plain.out.last_hidden_state)
    assert run.out.embeddings.shape == (2, 64)
    assert run.left == {"model.projection.weight"}
    # the fresh projection of 32 dimensions is the identity on the first ones
    cut = torch.nn.functional.normalize(run.out.embeddings[:, :32], dim=-1)
    assert same(cut, plain.out.embeddings)


def test_reasoning_is_allowed_or_refused_and_nothing_else(trained):
    folder, plain = trained
    run = Run(folder, max_reasoning_tokens=None)
    assert torch.equal(run.out.embeddings, plain.out.embeddings)
    processor = MoonProcessor.from_pretrained(folder)
    with pytest.raises(ValueError, match="does not reason"):
        run.model.embed(PRODUCTS, reasoning="generate", processor=processor)
    short = Run(folder, max_reasoning_tokens=3)
    assert short.model.embed(PRODUCTS, reasoning="generate", processor=processor).reasoning_ids.shape == (2, 3)
