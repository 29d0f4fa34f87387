"""Moon in the hands of other libraries as they are: plain Trainer, sentence-transformers, TRL, peft, pipelines."""

import json

import pytest
import torch
from datasets import Dataset
from PIL import Image
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from transformers import (
    AutoModel,
    AutoModelForImageTextToText,
    AutoModelForMultimodalLM,
    AutoTokenizer,
    Trainer,
    TrainingArguments,
    pipeline,
)

from modeling_moon import MoonForConditionalGeneration, MoonModel
from processing_moon import MoonProcessor

pytestmark = pytest.mark.lowest

PRESETS = ("moon1", "moon2", "moon3")
WORDS = ["red shoes", "a blue mug", "brown bag", "same in green"]
QUIET = {"report_to": [], "use_cpu": True, "disable_tqdm": True, "logging_steps": 1, "seed": 0}


def small(folder, **more):
    """Arguments of a training of four steps that saves every two."""
    steps = {"max_steps": 4, "save_steps": 2, "save_strategy": "steps", "per_device_train_batch_size": 2}
    return {"output_dir": str(folder), **QUIET, **steps, **more}


def losses(trainer):
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def same_weights(one, other):
    other = dict(other.named_parameters())
    return all(torch.equal(parameter, other[name]) for name, parameter in one.named_parameters())


# ---------------------------------------------------------------------------------------------------------------------
# Trainers
# ---------------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("preset", PRESETS)
def test_a_plain_trainer_trains_saves_and_resumes(tiny_moon, tmp_path, preset):
    folder = tiny_moon("qwen2_5_vl" if preset == "moon1" else "qwen3_vl", preset=preset)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    rows = [{"input_ids": ids, "labels": ids} for ids in (tokenizer(text)["input_ids"][:2] for text in WORDS)]

    def trainer(source, output_dir):
        model = AutoModelForImageTextToText.from_pretrained(source)
        model.generation_config.eos_token_id = None
        return Trainer(model, TrainingArguments(**small(output_dir)), train_dataset=rows, processing_class=tokenizer)

    straight = trainer(folder, tmp_path / "run")
    straight.train()
    straight.save_model(tmp_path / "final")
    for saved in (tmp_path / "final", tmp_path / "run" / "checkpoint-4"):
        assert json.loads((saved / "config.json").read_text())["use_cache"] is False  # the trainer's mark
        assert same_weights(AutoModelForImageTextToText.from_pretrained(saved), straight.model)
        assert same_weights(AutoModel.from_pretrained(saved), straight.model.model)
        vectors = AutoModel.from_pretrained(saved).embed(
            [{"title": "mug"}], processor=MoonProcessor.from_pretrained(folder)
        )
        assert torch.isfinite(vectors.embeddings).all()
    resumed = trainer(tmp_path / "run" / "checkpoint-2", tmp_path / "run")
    resumed.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2"))
    assert resumed.state.global_step == 4
    assert losses(resumed)[-2:] == pytest.approx(losses(straight)[-2:], rel=1e-5)


@pytest.mark.parametrize("preset", ["moon1", "moon3"])
def test_the_trainer_of_sentence_transformers_trains_saves_and_resumes(tiny_moon, tmp_path, preset):
    folder = tiny_moon("qwen3_vl", preset=preset)
    rows = Dataset.from_dict({"anchor": WORDS, "positive": WORDS[::-1]})

    def trainer(source):
        model = SentenceTransformer(str(source), trust_remote_code=True)
        arguments = SentenceTransformerTrainingArguments(**small(tmp_path / "run"))
        return SentenceTransformerTrainer(
            model, arguments, train_dataset=rows, loss=MultipleNegativesRankingLoss(model)
        )

    straight = trainer(folder)
    straight.train()
    straight.save_model(str(tmp_path / "final"))
    expected = straight.model.encode(WORDS, convert_to_tensor=True)
    for saved in (tmp_path / "final", tmp_path / "run" / "checkpoint-4"):
        torch.testing.assert_close(
            SentenceTransformer(str(saved), trust_remote_code=True).encode(WORDS, convert_to_tensor=True), expected
        )
    resumed = trainer(tmp_path / "run" / "checkpoint-2")
    resumed.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2"))
    assert resumed.state.global_step == 4
    assert losses(resumed)[-2:] == pytest.approx(losses(straight)[-2:], rel=1e-4)


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("method", ["sft", "dpo", "grpo"])
def test_the_trainers_of_trl_train_a_model_as_it_is(tiny_moon, tmp_path, preset, method):
    trl = pytest.importorskip("trl")
    folder = tiny_moon("qwen3_vl", preset=preset)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = MoonForConditionalGeneration.from_pretrained(folder)
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    options = small(tmp_path, max_steps=2, learning_rate=1e-2, bf16=False)
    together = {"processing_class": tokenizer}
    if method == "sft":
        rows = Dataset.from_dict({"text": WORDS})
        trainer = trl.SFTTrainer(model, args=trl.SFTConfig(**options), train_dataset=rows, **together)
    elif method == "dpo":
        rows = Dataset.from_dict({"prompt": WORDS, "chosen": ["mug"] * 4, "rejected": ["shoes"] * 4})
        trainer = trl.DPOTrainer(model, args=trl.DPOConfig(**options), train_dataset=rows, **together)
    else:

        def reward(completions, **_):
            return [float(index % 2) for index, _ in enumerate(completions)]

        config = trl.GRPOConfig(**options, num_generations=2, max_completion_length=4)
        rows = Dataset.from_dict({"prompt": WORDS})
        trainer = trl.GRPOTrainer(model, reward_funcs=reward, args=config, train_dataset=rows, **together)
    trainer.train()
    assert all(torch.isfinite(torch.tensor(loss)) for loss in losses(trainer))
    moved = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
    assert any(".self_attn." in name for name in moved)
    assert any(".mlp." in name for name in moved)
    again = MoonForConditionalGeneration.from_pretrained(tmp_path / "checkpoint-2")
    assert same_weights(again, model)


# ---------------------------------------------------------------------------------------------------------------------
# peft
# ---------------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("tuning", ["PromptTuningConfig", "PrefixTuningConfig", "PromptEncoderConfig"])
def test_prompts_are_tuned_where_no_expert_reads_markers_and_refused_elsewhere(tiny_moon, tuning):
    peft = pytest.importorskip("peft")
    for preset in PRESETS:
        folder = tiny_moon("qwen3_vl", preset=preset)
        words = AutoTokenizer.from_pretrained(folder)(["a red mug"], return_tensors="pt")
        for task, model_class in (("CAUSAL_LM", MoonForConditionalGeneration), ("FEATURE_EXTRACTION", MoonModel)):
            model = peft.get_peft_model(
                model_class.from_pretrained(folder), getattr(peft, tuning)(task_type=task, num_virtual_tokens=3)
            )
            settings, text_config = model.peft_config["default"], model.get_base_model().config.text_config
            assert settings.num_layers == text_config.num_hidden_layers
            heads = (
                text_config.num_key_value_heads if tuning == "PrefixTuningConfig" else text_config.num_attention_heads
            )
            assert settings.num_attention_heads == heads
            if preset != "moon2":
                with pytest.raises(ValueError, match=r"guided experts .*need"):
                    model(**words)
                continue
            model(**words)[0].sum().backward()
            learns = [parameter for parameter in model.parameters() if parameter.requires_grad]
            assert learns
            assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in learns)
            if task == "CAUSAL_LM":
                assert model.generate(**words, max_new_tokens=2, min_new_tokens=2).shape[1] >= 2


def test_peft_sees_that_embeddings_are_tied(tiny_moon):
    peft = pytest.importorskip("peft")
    for tied in (True, False):
        model = MoonForConditionalGeneration.from_pretrained(tiny_moon("qwen3_vl", tie_word_embeddings=tied))
        assert peft.tuners.tuners_utils.BaseTuner.get_model_config(model)["tie_word_embeddings"] is tied


# ---------------------------------------------------------------------------------------------------------------------
# Pipelines
# ---------------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("preset", PRESETS)
def test_the_pipeline_of_features_gives_the_hidden_states_of_any_text(tiny_moon, preset):
    folder = tiny_moon("qwen3_vl", preset=preset)
    extract = pipeline("feature-extraction", model=str(folder), tokenizer=AutoTokenizer.from_pretrained(folder))
    model = MoonModel.from_pretrained(folder).eval()
    for text in WORDS:
        with torch.no_grad():
            expected = model(**extract.tokenizer(text, return_tensors="pt")).last_hidden_state
        torch.testing.assert_close(torch.tensor(extract(text)), expected, rtol=1e-4, atol=1e-5)


def test_the_pipeline_of_any_to_any_writes_about_pictures_and_words(tiny_moon, monkeypatch):
    # The library asks for torchvision here, which its own image processors may need and Moon's does not.
    monkeypatch.setattr("transformers.pipelines.any_to_any.requires_backends", lambda *_: None)
    folder = tiny_moon("qwen3_vl", preset="moon3")
    assert json.loads((folder / "config.json").read_text())["auto_map"]["AutoModelForMultimodalLM"] == (
        "modeling_moon.MoonForConditionalGeneration"
    )
    assert isinstance(AutoModelForMultimodalLM.from_pretrained(folder), MoonForConditionalGeneration)
    write = pipeline("any-to-any", model=str(folder), processor=MoonProcessor.from_pretrained(folder))
    told = write(text="a red mug", max_new_tokens=3)
    assert told[0]["generated_text"].startswith("a red mug")
    seen = write(
        images=[Image.new("RGB", (64, 64), "red")],
        text="<|vision_start|><|image_pad|><|vision_end|>a mug",
        max_new_tokens=3,
        return_full_text=False,
    )
    assert isinstance(seen[0]["generated_text"], str)
