"""Private names of the libraries are used in `training/libraries/`; files below it, which cannot import it, are listed here.

Files of checkpoints import nothing of ours, and `retrieval` and `evaluation` stand below `training`. Their names are compared
with the installed version as those of `training/libraries/` are.
"""

import pytest
from library_names import ROOT, Relied, difference
from private_names import FILES, uses_of

pytestmark = pytest.mark.lowest

MODEL, CONFIG = "transformers.PreTrainedModel", "transformers.PreTrainedConfig"
GENERATION, PROCESSOR = "transformers.GenerationMixin", "transformers.ProcessorMixin"
MODELING, GENERATING = "modeling_moon/modeling_moon.py", "modeling_moon/generation_moon.py"
SENTENCES, COPYING = "modeling_moon/sentence_transformer_moon.py", "modeling_moon/copying_moon.py"
TOWER = "evaluation/baselines/dual_tower.py"
CLASS_SETTINGS = (
    "_supports_flash_attn",
    "_supports_sdpa",
    "_supports_attention_backend",
    "_can_compile_fullgraph",
    "_no_split_modules",
    "_skip_keys_device_placement",
    "_keys_to_ignore_on_load_unexpected",
    "_tied_weights_keys",
)
BELOW = [
    *(Relied(MODEL, name, MODELING) for name in CLASS_SETTINGS),
    *(Relied(MODEL, name, TOWER) for name in CLASS_SETTINGS[:3]),
    *(Relied(MODEL, "_init_weights", file, "(self, module)", called=True) for file in (MODELING, TOWER)),
    Relied(MODEL, "_can_set_experts_implementation", MODELING, "(cls)", called=True),
    Relied(
        MODEL,
        "_set_gradient_checkpointing",
        MODELING,
        "(self, enable=True, gradient_checkpointing_func=checkpoint, every_n_layers=1)",
        called=True,
    ),
    *(
        Relied(CONFIG, "_attn_implementation", file)
        for file in ("modeling_moon/fusion_moon.py", MODELING, "modeling_moon/outputs_moon.py")
    ),
    Relied(CONFIG, "_attn_implementation", "evaluation/heatmap.py"),
    *(Relied(CONFIG, "_experts_implementation", file) for file in (MODELING, "evaluation/speed.py")),
    *(
        Relied(CONFIG, "_name_or_path", file)
        for file in (
            "modeling_moon/configuration_moon.py",
            "modeling_moon/origin_moon.py",
            "retrieval/encode.py",
            TOWER,
        )
    ),
    Relied(CONFIG, "_dict_from_json_file", "modeling_moon/configuration_moon.py", "(cls, json_file)"),
    Relied(GENERATION, "_prepare_position_ids_for_generation", GENERATING, "(self, inputs_tensor, model_kwargs)", True),
    Relied(
        GENERATION,
        "_expand_inputs_for_generation",
        GENERATING,
        "(self, expand_size=1, is_encoder_decoder=False, input_ids=None, **model_kwargs)",
        called=True,
    ),
    Relied(
        PROCESSOR,
        "_get_arguments_from_pretrained",
        "processing_moon/prompts_moon.py",
        "(cls, pretrained_model_name_or_path, processor_dict=None, **kwargs)",
        called=True,
    ),
    *(Relied(MODEL, "_hf_peft_config_loaded", file) for file in (SENTENCES, "modeling_moon/saving_moon.py")),
    Relied("transformers.utils.hub", "_raise_exceptions_for_missing_entries", SENTENCES, mentioned=True),
    Relied("sentence_transformers.SentenceTransformer", "_module_classes", "modeling_moon/__init__.py"),
    Relied("sentence_transformers.base.model.BaseModel", "_module_classes", "modeling_moon/__init__.py"),
    Relied("peft.tuners.tuners_utils", "base_layer", "modeling_moon/saving_moon.py", mentioned=True),
    Relied("peft.utils.other", "original_module", "modeling_moon/saving_moon.py", mentioned=True),
    Relied("transformers.utils.output_capturing", "_output_capturing_hooks_installed", COPYING, mentioned=True),
    *(
        Relied("torch.nn.Module", name, COPYING)
        for name in ("_forward_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called", "_modules")
    ),
]


@pytest.mark.parametrize("relied", BELOW, ids=lambda relied: f"{relied}-{relied.file}")
def test_the_installed_version_has_what_files_below_training_rely_on(relied):
    if sentence := difference(relied):
        pytest.fail(sentence, pytrace=False)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_uses_no_private_name_of_a_library_that_is_not_compared(path):
    file = str(path.relative_to(ROOT))
    if file.startswith("training/libraries/"):
        return  # each has a test of its own
    compared = {relied.name for relied in BELOW if relied.file == file}
    others = {name: line for name, line in uses_of(file).items() if name not in compared}
    for name, line in others.items():
        where = "training/libraries/" if file.startswith(("training/", "moon3/")) else "the list of this test"
        pytest.fail(f"{file}, line {line}: found {name}, a private name of a library; expected it in {where}", False)


@pytest.mark.parametrize("relied", BELOW, ids=lambda relied: f"{relied}-{relied.file}")
def test_a_listed_file_still_uses_the_name(relied):
    assert relied.name in (ROOT / relied.file).read_text()


def test_every_file_of_the_libraries_has_a_test_of_its_own():
    files = {path.stem for path in (ROOT / "training" / "libraries").glob("*.py")} - {"__init__"}
    assert files == {path.stem.removeprefix("test_") for path in (ROOT / "tests/training/libraries").glob("test_*.py")}


def test_a_planted_change_is_named_with_the_file_below(monkeypatch):
    from transformers import GenerationMixin

    monkeypatch.setattr(GenerationMixin, "_prepare_position_ids_for_generation", lambda self, inputs: None)
    (relied,) = [one for one in BELOW if one.name == "_prepare_position_ids_for_generation"]
    assert difference(relied) == (
        "transformers.GenerationMixin._prepare_position_ids_for_generation(self, inputs_tensor, model_kwargs): "
        "found (self, inputs); modeling_moon/generation_moon.py depends on it"
    )
