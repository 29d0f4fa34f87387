"""TRL's GRPOTrainer has the steps and the state that we give public names, and these names are not taken."""

import inspect

import pytest
from library_names import Relied, difference
from private_names import uses_of
from trl import GRPOTrainer

from training.libraries.trl_library import RolloutSteps

pytestmark = pytest.mark.lowest

FILE = "training/libraries/trl_library.py"
JOINT = "training/reasoning/grpo_trainer.py"
TRAINER = "trl.GRPOTrainer"
OVERRIDDEN = [
    Relied(TRAINER, "_generate_and_score_completions", FILE, "(self, inputs)", called=True),
    Relied(TRAINER, "_tokenize_prompts", FILE, "(self, prompts)", called=True),
    Relied(
        TRAINER,
        "_generate_single_turn",
        FILE,
        "(self, prompt_ids, images, multimodal_fields, num_generations, has_tool_images=False)",
        called=True,
    ),
    Relied(
        TRAINER, "_calculate_rewards", FILE, "(self, inputs, prompts, completions, completion_ids_list)", called=True
    ),
    Relied(
        TRAINER,
        "_get_per_token_logps_and_entropies",
        FILE,
        "(self, model, input_ids, attention_mask, logits_to_keep, batch_size=None, compute_entropy=False, "
        "compute_aux_loss=False, pixel_values=None, image_grid_thw=None, num_images=None, pixel_attention_mask=None, "
        "spatial_shapes=None, num_tiles=None, image_sizes=None, token_type_ids=None, mm_token_type_ids=None, "
        "image_position_ids=None)",
        called=True,
    ),
    Relied(TRAINER, "_compute_loss", FILE, "(self, model, inputs)", called=True),
]
PUBLIC = [
    Relied(TRAINER, "create_model_card", JOINT, "(self, model_name=None, dataset_name=None, tags=None)", called=True),
    Relied(TRAINER, "log", JOINT, "(self, logs, start_time=None)"),
    *(
        Relied(TRAINER, name, JOINT)
        for name in ("eos_token_ids", "beta", "ref_model", "temperature", "num_generations", "max_completion_length")
    ),
    Relied(TRAINER, "use_vllm", JOINT),
]
"""Not private, but overridden, set or read where the documentation does not describe what we rely on."""
RELIED = [
    *OVERRIDDEN,
    *(Relied(TRAINER, name, FILE) for name in ("_metrics", "_logs", "_tokenizer", "_step")),
    Relied(
        "trl.trainer.utils",
        "add_fused_lm_head",
        FILE,
        "(model, temperature=1.0, cast_lm_head_to_fp32=False, outputs=('log_probs',))",
    ),
    *PUBLIC,
]


@pytest.mark.parametrize("relied", RELIED, ids=str)
def test_the_installed_version_has_what_we_rely_on(relied):
    if sentence := difference(relied):
        pytest.fail(sentence, pytrace=False)


def test_every_private_name_of_the_file_is_compared():
    compared = {relied.name for relied in RELIED if relied.file == FILE and relied.name.startswith("_")}
    assert set(uses_of(FILE)) == compared


def test_a_changed_signature_is_named_with_our_file(monkeypatch):
    monkeypatch.setattr(GRPOTrainer, "_compute_loss", lambda self, model, inputs, mode: None)
    assert difference(OVERRIDDEN[-1]) == (
        "trl.GRPOTrainer._compute_loss(self, model, inputs): found (self, model, inputs, mode); "
        "training/libraries/trl_library.py depends on it"
    )


def test_our_methods_take_what_the_library_hands_over():
    for relied in OVERRIDDEN:
        known = inspect.signature(getattr(GRPOTrainer, relied.name)).parameters.values()
        named = {one.name: None for one in known if one.default is not one.empty}
        inspect.signature(vars(RolloutSteps)[relied.name]).bind(
            *(one for one in known if one.name not in named), **named
        )


def test_no_step_of_ours_bears_a_name_of_the_library():
    steps = {name for name in vars(RolloutSteps) if not name.startswith("_")}
    assert len(steps) == 6
    assert not steps & set(dir(GRPOTrainer))


def test_the_steps_do_what_the_library_does_where_nothing_is_overridden():
    plain = RolloutSteps.__new__(RolloutSteps)
    assert plain.roll_out([{"prompt": ""}], lambda rows: {"rows": rows}) == {"rows": [{"prompt": ""}]}
    assert plain.tokenize(["a"], lambda prompts: (prompts, None, {})) == (["a"], None, {})
    assert plain.reward_rows([{"prompt": ""}], ["a"], [[1]]) == [{"prompt": ""}]
    given = plain.score_tokens(lambda *args, **kwargs: (args, kwargs), "model", "ids", "mask", 3, batch_size=2)
    assert given == (("model", "ids", "mask", 3), {"batch_size": 2})
    assert plain.chunk_loss(lambda: 0.5, "model", {}) == 0.5
    with plain.generation_context() as nothing:
        assert nothing is None
