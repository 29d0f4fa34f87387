"""The joint stage against TRL's own trainer, against inference and against itself after a stop."""

import copy
import dataclasses
import functools
import json
import math
from pathlib import Path

import pyarrow.parquet
import pytest
import torch
from closeness import EPSILON, GRADIENT, assert_same_gradients
from gradient_steps import PLAIN_STEPS, Gradients, with_adapters
from peft import PeftModel
from pictures import noise
from trl import GRPOTrainer
from trl.trainer.utils import add_fused_lm_head
from words import words

from modeling_moon import MoonForConditionalGeneration
from modeling_moon.thinking_moon import Thinking, generation_config
from processing_moon import MoonProcessor
from product_data.atomic_files import read_lines
from training.assembly.starting_model import make_trainable
from training.batches.collate import UnreadableBatchError
from training.batches.negatives import NO_ID, NegativeQueue, stable_id
from training.batches.pairs import Pair
from training.losses.info_nce import InfoNCELoss
from training.reasoning.grpo_trainer import MoonGRPOTrainer, grpo_arguments
from training.reasoning.rollouts import PromptCollator, rollout_dataset
from training.recipe.loss import LossArguments
from training.recipe.model import ModelArguments
from training.recipe.reasoning import ReasoningArguments
from training.recipe.training import MoonTrainingArguments
from training.runs.finite_steps import NonFiniteLossError

MAX_TOKENS, ROLLOUTS = 6, 3
TIMES = ("step_time",)


def pair(number, kind):
    """A pair whose query is of text, of a picture, or of both; every product has a title, those of pictures also one."""
    query = {"id": f"q{number}"}
    query |= {"text": words(number)} if kind != "i" else {}
    query |= {"image": noise(seed=number)} if kind != "t" else {}
    products = []
    for name in (f"p{number}", f"h{number}"):
        seed = number + (500 if name[0] == "h" else 0)
        product = {"id": name, "title": words(100 + seed), "category": "Home > Mugs", "attributes": {"colour": "red"}}
        products.append(product | ({"images": [noise(seed=100 + seed)]} if kind != "t" else {}))
    names = [product["id"] for product in products]
    ids = [stable_id(name) for name in names]
    return Pair(query, products, names, ids, [NO_ID] * 2, NO_ID, [], [ids[1]], position=number)


class Pairs:
    """A pair for each letter: t, i or b(oth)."""

    def __init__(self, kinds):
        self.pairs = [pair(number, kind) for number, kind in enumerate(kinds)]

    def __len__(self):
        return len(self.pairs)

    def __getitem__(self, number):
        return self.pairs[number]


@pytest.fixture(scope="module", params=["qwen3_vl"])
def joint(request, tiny_moon, tmp_path_factory):
    return closing(
        tiny_moon(request.param, preset="moon3", trained=True, max_reasoning_tokens=MAX_TOKENS), tmp_path_factory
    )


def closing(folder, tmp_path_factory):
    """The folder of a model that often writes `</think>`, so that rollouts end at different steps."""
    model, processor = MoonForConditionalGeneration.from_pretrained(folder).eval(), processor_of(folder)
    records = [record for number, kind in enumerate("tib") for record in pair(number, kind).products[:1]]
    batch = processor(products=records, form="mm", reasoning="generate", return_tensors="pt")
    written = torch.randint(10, 300, (len(records), MAX_TOKENS), generator=torch.Generator().manual_seed(0))
    batch["input_ids"] = torch.cat([batch["input_ids"], written], dim=1)
    batch["attention_mask"] = torch.cat([batch["attention_mask"], torch.ones_like(written)], dim=1)
    batch.pop("mm_token_type_ids", None)
    with torch.no_grad():
        state_H = model.model(**batch, output_embeddings=False).last_hidden_state[:, -MAX_TOKENS - 1 :].mean(dim=(0, 1))
        model.get_input_embeddings().weight[model.config.think_end_token_id] += 4 * state_H / state_H.pow(2).sum()
    out = tmp_path_factory.mktemp("closing")
    model.save_pretrained(out)
    processor.save_pretrained(out)
    return out


def processor_of(folder):
    processor = MoonProcessor.from_pretrained(folder)
    processor.max_image_tokens = 4
    processor.instructions = {**processor.instructions, "product": "product", "query": "query"}
    return processor


def even_reward(prompts, completions, completion_ids, **columns):
    """The share of even token ids: any reward that differs between rollouts will do."""
    return [sum(token % 2 == 0 for token in row) / len(row) for row in completion_ids]


def long_reward(prompts, completions, completion_ids, **columns):
    return [len(row) / MAX_TOKENS for row in completion_ids]


REWARDS = {"even": even_reward, "long": long_reward}
WEIGHTS = {"even": 1.0, "long": 0.5}


@pytest.fixture(autouse=True)
def own_rewards(monkeypatch):
    import training.reasoning.grpo_trainer as module

    known = module.reward_function
    monkeypatch.setattr(module, "reward_function", lambda name: REWARDS.get(name) or known(name))


OF_LOSS = ("negative_margin", "queue_warmup_steps")
"""What the trainer reads of the loss."""


def arguments(output, steps=2, batch=2, **values):
    defaults = PLAIN_STEPS | {"max_steps": steps, "per_device_train_batch_size": batch, "learning_rate": 1e-2}
    defaults |= {"max_grad_norm": 1.0, "seed": 1, "warmup_steps": 0}
    return MoonTrainingArguments(output_dir=str(output), **{**defaults, **values})


def settings_of(folder, args, temperature=1.0, chunk=None):
    processor = processor_of(folder)
    reasoning = ReasoningArguments(
        stage="grpo", rollouts=ROLLOUTS, rollout_temperature=temperature, rollout_chunk_size=chunk
    )
    config = MoonForConditionalGeneration.config_class.from_pretrained(folder)
    return processor, grpo_arguments(args, reasoning, config, processor.tokenizer)


def make_trainer(folder, output, kinds="bt", kind=MoonGRPOTrainer, lora=False, rewards=WEIGHTS, queue=2, **settings):
    given = {"completions_steps": 0, "kl_weight": 0.0} | settings.pop("options", {})
    of_loss = {name: given.pop(name) for name in OF_LOSS if name in given}
    grpo = {name: settings.pop(name) for name in ("temperature", "chunk") if name in settings}
    processor, args = settings_of(folder, arguments(output, **settings), **grpo)
    model = MoonForConditionalGeneration.from_pretrained(folder)
    model = with_adapters(model) if lora else model
    repeated = (kinds * 100)[: settings.get("steps", 2) * settings.get("batch", 2)]
    return kind(
        model=model,
        args=args,
        pairs=Pairs(repeated),
        processor=processor,
        loss=InfoNCELoss(0.2),
        queue=NegativeQueue(queue),
        rewards=rewards,
        reasoning=ReasoningArguments(stage="grpo", **given),
        options=LossArguments(**of_loss),
    )


# With λ = 0 it is TRL's


def without_vectors(writer):
    """TRL's own texts do not end in `<emb>`: the encoder must not look for a vector."""
    encoder = (writer.get_base_model() if isinstance(writer, PeftModel) else writer).model
    encoder.forward = functools.partial(type(encoder).forward, encoder, output_embeddings=False)


class PlainGRPO(GRPOTrainer):
    """TRL's trainer as it is, but for where the prompts, the pictures and the reference come from."""

    def __init__(self, *, model, args, pairs, processor, rewards, reasoning, **_):
        args.reward_weights = list(rewards.values())
        without_vectors(model)
        reference = copy.deepcopy(model).eval().requires_grad_(False)
        super().__init__(
            model=model,
            args=args,
            reward_funcs=[REWARDS[name] for name in rewards],
            train_dataset=rollout_dataset(len(pairs)),
            processing_class=processor.tokenizer,
        )
        self.eos_token_ids = list(args.generation_kwargs["eos_token_id"])
        self.beta, self.ref_model = reasoning.kl_weight, reference
        add_fused_lm_head(reference, temperature=self.temperature)
        self.source = PromptCollator(processor, pairs, args.num_generations)
        self.scoring = {}

    def _generate_and_score_completions(self, inputs):
        self.prompts = self.source.prompts(inputs)
        self.scoring = self.prompts.pictures()
        output = super()._generate_and_score_completions(inputs) | self.scoring
        self.scoring = {}
        return output

    def _tokenize_prompts(self, prompts):
        return self.prompts.ids, None, {name: value for name, value in self.scoring.items() if name != "num_images"}

    def _get_per_token_logps_and_entropies(self, *given, **named):
        named |= self.scoring | ({"batch_size": None} if self.scoring else {})
        if named.get("image_grid_thw") is not None and not len(named["image_grid_thw"]):
            named |= {"pixel_values": None, "image_grid_thw": None, "num_images": None}
        return super()._get_per_token_logps_and_entropies(*given, **named)


def losses(trainer):
    return [entry for entry in trainer.state.log_history if "loss" in entry]


@pytest.mark.lowest
@pytest.mark.parametrize(
    ("kinds", "kl_weight", "settings"),
    [
        ("bt", 0.5, {"temperature": 0.7}),
        ("tt", 0.0, {"chunk": 3}),
        ("it", 0.5, {"chunk": 2, "lora": True}),
    ],
    ids=["mixed", "texts in chunks", "mixed in small chunks, adapters"],
)
def test_without_the_infonce_every_step_is_trls_own(joint, tmp_path, kinds, kl_weight, settings):
    options = {"contrastive_weight": 0.0, "kl_weight": kl_weight}
    found = []
    for kind in (MoonGRPOTrainer, PlainGRPO):
        trainer = make_trainer(joint, tmp_path / kind.__name__, kinds, kind, options=options, steps=3, **settings)
        if kind is PlainGRPO and settings.get("lora"):
            trainer.ref_model = None  # as TRL does with adapters: the reference is the policy without them
        gradients = Gradients()
        trainer.add_callback(gradients)
        trainer.train()
        found.append((losses(trainer), gradients.steps))
    (ours, our_gradients), (theirs, their_gradients) = found
    assert len(ours) == len(theirs) == 3
    assert len({round(entry["completions/mean_length"], 6) for entry in theirs}) > 1  # rollouts of several lengths
    for step, (one, two) in enumerate(zip(ours, theirs, strict=True), start=1):
        names = {"loss", "grad_norm", "entropy", "reward", "reward_std", "completions/mean_length", "num_tokens"}
        names |= {"kl"} if kl_weight else set()
        for name in names:
            assert one[name] == pytest.approx(two[name], rel=step * GRADIENT, abs=16 * EPSILON), name
        assert one["grpo"] == pytest.approx(two["loss"], rel=step * GRADIENT, abs=16 * EPSILON)
    if kl_weight:
        assert theirs[-1]["kl"] > 1e-6
    assert_same_gradients(our_gradients, their_gradients)


# Log-probabilities


def rollouts_of(trainer, pairs):
    """One step's rollouts through the trainer's own generation, with the logits that they were drawn from."""
    rows = [
        trainer.train_dataset[2 * number + side] for number in range(pairs) for side in (0, 1) for _ in range(ROLLOUTS)
    ]
    drawn = []
    writer = trainer.accelerator.unwrap_model(trainer.model)
    generate = writer.generate

    def watched(**given):
        found = generate(**given, return_dict_in_generate=True, output_logits=True)
        drawn.append(torch.stack(found.logits, dim=1))
        return found.sequences

    writer.generate = watched
    trainer.model.train()
    try:
        return trainer._generate_and_score_completions(rows), drawn[0]
    finally:
        del writer.generate


@pytest.mark.lowest
@pytest.mark.parametrize("backbone", ["qwen3_vl", "qwen2_5_vl"])
@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_drawn_and_recomputed_log_probabilities_agree(tiny_moon, tmp_path_factory, tmp_path, backbone, temperature):
    plain = tiny_moon(backbone, preset="moon3", trained=True, max_reasoning_tokens=MAX_TOKENS)
    trainer = make_trainer(closing(plain, tmp_path_factory), tmp_path, "bti", temperature=temperature, batch=3, steps=1)
    writer = trainer.accelerator.unwrap_model(trainer.model)
    assert writer.config.reads_aspects
    out, logits_LCV = rollouts_of(trainer, 3)
    ids_LC, mask_LC = out["completion_ids"], out["completion_mask"]
    whole_ids = torch.cat([out["prompt_ids"], ids_LC], dim=1)
    whole_mask = torch.cat([out["prompt_mask"], mask_LC], dim=1)
    assert bool((writer.model.find_aspect_ids(whole_ids) > 0).any())  # guided experts have tokens of their own
    lengths = mask_LC.sum(dim=1)
    assert len(set(lengths.tolist())) > 1
    logps_LCV = (logits_LCV[:, : ids_LC.shape[1]] / temperature).log_softmax(dim=-1)
    drawn_LC = logps_LCV.gather(2, ids_LC[..., None])[..., 0]
    pictures = {name: out[name] for name in ("pixel_values", "image_grid_thw", "num_images")}
    with torch.no_grad():
        given = (trainer.model, whole_ids, whole_mask, ids_LC.shape[1])
        recomputed_LC = trainer._get_per_token_logps_and_entropies(*given, **pictures)[0]
        without_vectors(writer)
        without_ending_LC = GRPOTrainer._get_per_token_logps_and_entropies(trainer, *given, **pictures)[0]
    counted = mask_LC.bool()
    assert torch.allclose(recomputed_LC[counted], drawn_LC[counted], atol=1e-4)
    assert torch.allclose(recomputed_LC[counted], without_ending_LC[counted], atol=1e-5)
    assert recomputed_LC[counted].std() > 0.1


def test_rollouts_are_drawn_by_the_rules_of_inference(joint, tmp_path):
    trainer = make_trainer(joint, tmp_path, "b", batch=1, steps=1)
    config, tokenizer = trainer.model.config, trainer.processor.tokenizer
    inference = generation_config(config, Thinking(do_sample=True), tokenizer)
    drawn = trainer.generation_config
    for name in ("suppress_tokens", "eos_token_id", "max_new_tokens", "temperature", "top_p", "top_k", "do_sample"):
        assert getattr(drawn, name) == getattr(inference, name), name
    wanted = {config.emb_token_id, config.image_token_id, tokenizer.eos_token_id, config.think_start_token_id}
    assert wanted | {tokenizer.convert_tokens_to_ids("<|vision_pad|>"), config.vocab_size - 1} <= set(
        drawn.suppress_tokens
    )


def test_a_barred_token_is_never_drawn_however_likely_it_is(joint, tmp_path):
    trainer = make_trainer(joint, tmp_path, "tb", steps=1)
    barred = torch.tensor(trainer.generation_config.suppress_tokens)
    bias_V = torch.zeros(trainer.model.config.vocab_size)
    bias_V[barred] = 50.0
    trainer.model.lm_head.register_forward_hook(lambda module, given, logits: logits + bias_V)
    out, logits_LCV = rollouts_of(trainer, 2)
    assert torch.isin(logits_LCV.argmax(dim=-1), barred).all()
    written = out["completion_ids"][out["completion_mask"].bool()]
    assert len(written) >= 4 * ROLLOUTS
    assert not torch.isin(written, barred).any()


# Vectors


@pytest.mark.parametrize("kinds", ["tb", "tt", "ib"])
def test_the_rewards_see_the_vectors_of_inference(joint, tmp_path, kinds):
    trainer = make_trainer(joint, tmp_path, kinds, batch=2, steps=1)
    model, processor = trainer.model.eval(), trainer.processor
    prompts = trainer.ahead.collator.prompts([trainer.train_dataset[row // ROLLOUTS] for row in range(4 * ROLLOUTS)])
    pairs = [trainer.ahead.collator.pairs[number] for number in (0, 1)]
    torch.manual_seed(7)
    thought, written = [], []
    for one in pairs:
        for asked in ({"queries": [one.query] * ROLLOUTS, "task": "query"}, {"products": one.products[:1] * ROLLOUTS}):
            form = {} if "queries" in asked else {"form": "mm"}
            batch = processor(**asked, **form, reasoning="generate", return_tensors="pt")
            found = model.embed(batch, reasoning="generate", processor=processor, thinking={"do_sample": True})
            thought.append(found.embeddings)
            pad = processor.tokenizer.pad_token_id
            written += [[token for token in row if token != pad] for row in found.reasoning_ids.tolist()]
    close = model.config.think_end_token_id
    closed = [row[-1:] == [close] for row in written]
    assert {False, True} == set(closed)
    assert len({len(row) for row in written}) > 2  # early, late and never
    written[0] = [close]  # at once
    whole = [prompts.ids[0] + [close, model.config.emb_token_id]]
    with torch.no_grad():
        pictures = {name: value for name, value in prompts.pictures(0, 1).items() if name != "num_images"}
        empty = model.model(input_ids=torch.tensor(whole), **pictures).embeddings
    trainer._prompts = prompts
    vectors = trainer._vectors_of(written)
    both = torch.stack([vectors.query_RD.view(2, ROLLOUTS, -1), vectors.product_RD.view(2, ROLLOUTS, -1)], dim=1)
    expected = torch.cat(thought)
    expected[0] = empty[0]
    assert torch.allclose(both.flatten(0, 2), expected, atol=1e-5)
    assert (both[:, :, 0] - both[:, :, 1]).abs().max() > 1e-3  # what was written matters
    with torch.no_grad():
        queries = processor(queries=[one.query for one in pairs], task="query", return_tensors="pt")
        products = processor(products=[item for one in pairs for item in one.products], form="mm", return_tensors="pt")
        plain = [model.embed(batch, reasoning="none", processor=processor).embeddings for batch in (queries, products)]
    assert torch.allclose(vectors.plain_query_BD, plain[0], atol=1e-5)
    assert torch.allclose(vectors.plain_product_ND, plain[1], atol=1e-5)


# Going on


def kept(trainer):
    lines = read_lines(Path(trainer.args.output_dir) / "metrics.jsonl")
    return [{name: value for name, value in line.items() if name not in TIMES} for line in lines]


@pytest.mark.lowest
@pytest.mark.parametrize("lora", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["full", "adapters"])
def test_a_resumed_run_is_the_uninterrupted_one_bit_by_bit(joint, tmp_path, lora):
    saving = {"save_strategy": "steps", "save_steps": 2, "optim": "adamw_torch", "steps": 4, "chunk": 6, "lora": lora}
    saving |= {"options": {"kl_weight": 0.1, "completions_steps": 1, "queue_warmup_steps": 1}, "logging_steps": 3}
    saving |= {"rewards": {"format": 0.5, "retrieval": 1.0, "even": 1.0}}
    whole = make_trainer(joint, tmp_path / "whole", "btit", **saving)
    whole.train()
    resumed = make_trainer(joint, tmp_path / "resumed", "btit", **saving)
    for folder in ("metrics.jsonl", "completions"):
        assert not (tmp_path / "resumed" / folder).exists()
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    lines = [kept(trainer) for trainer in (whole, resumed)]
    assert [line["step"] for line in lines[0]] == [line["step"] for line in lines[1]] == [3]
    assert lines[0][-1] == lines[1][-1]  # the mean over steps before and after the stop
    totals = [trainer.state.log_history[-1]["train_loss"] for trainer in (whole, resumed)]
    assert totals[0] == totals[1]
    for one, two in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(one, two)
    moments = [list(trainer.optimizer.state.values()) for trainer in (whole, resumed)]
    assert all(torch.equal(one["exp_avg_sq"], two["exp_avg_sq"]) for one, two in zip(*moments, strict=True))
    queues = [trainer.queue.state_dict()["steps"] for trainer in (whole, resumed)]
    assert len(queues[0]) == 2
    for one, two in zip(*queues, strict=True):
        assert all(torch.equal(one[name], two[name]) for name in one)
    for step in (3, 4):
        name = f"completions/step-{step:06d}.parquet"
        tables = [pyarrow.parquet.read_table(tmp_path / run / name).to_pylist() for run in ("whole", "resumed")]
        assert len(tables[0]) == 2 * 2 * ROLLOUTS
        assert repr(tables[0]) == repr(tables[1])  # a reward that is not a number equals itself here


# What is saved


GENERATION = {"max_new_tokens": 77, "temperature": 0.3, "do_sample": True, "eos_token_id": [5, 6]}


def test_adapters_over_a_bfloat16_base_learn_in_its_precision(joint, tmp_path):
    """As moon3_one_gpu: the base in bfloat16, adapters and what is new to the base in float32, under autocast."""
    lora = {"r": 2, "target_modules": ["q_proj"], "modules_to_save": ["router", "fusion", "fire", "projection"]}
    lora["target_parameters"] = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
    processor, args = settings_of(joint, arguments(tmp_path, bf16=True, steps=1))
    base = MoonForConditionalGeneration.from_pretrained(joint, dtype=torch.bfloat16)
    model = make_trainable(base, ModelArguments(base="base", lora=lora))
    settings = {"pairs": Pairs("bt"), "processor": processor, "loss": InfoNCELoss(0.2), "queue": NegativeQueue(2)}
    trainer = MoonGRPOTrainer(
        model=model, args=args, rewards=WEIGHTS, reasoning=ReasoningArguments(stage="grpo", kl_weight=0.1), **settings
    )
    before = {name: value.detach().clone() for name, value in model.named_parameters() if value.requires_grad}
    trainer.train()
    learned = [
        name for name, value in model.named_parameters() if name in before and not torch.equal(value, before[name])
    ]
    assert {"lora_B", "fusion", "projection"} <= {part for name in learned for part in name.split(".")}


@pytest.mark.parametrize("lora", [False, True], ids=["full", "adapters"])
def test_a_saved_model_keeps_its_own_settings(joint, tmp_path, lora):
    before = json.loads((joint / "config.json").read_text())
    own = MoonForConditionalGeneration.from_pretrained(joint)
    own.generation_config.update(**GENERATION)
    own.save_pretrained(tmp_path / "own")
    processor_of(joint).save_pretrained(tmp_path / "own")
    trainer = make_trainer(tmp_path / "own", tmp_path / "run", "b", batch=1, steps=1, lora=lora)
    trainer.train()
    writer = trainer.accelerator.unwrap_model(trainer.model)
    writer = writer.merge_and_unload() if lora else writer
    writer.save_pretrained(tmp_path / "saved")
    after = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert {**after, "transformers_version": 0} == {**before, "transformers_version": 0}
    generation = [json.loads((tmp_path / name / "generation_config.json").read_text()) for name in ("own", "saved")]
    assert generation[0] == generation[1]
    assert generation[1].items() >= GENERATION.items()


def test_the_reference_is_a_frozen_copy_that_is_not_saved(joint, tmp_path):
    saving = {"save_strategy": "steps", "save_steps": 1, "options": {"kl_weight": 0.1}}
    trainer = make_trainer(joint, tmp_path, "bt", steps=2, **saving)
    start = copy.deepcopy(trainer.ref_model.state_dict())
    policy = trainer.model.state_dict()
    assert all(torch.equal(start[name], policy[name]) for name in policy)
    trainer.train()
    assert all(torch.equal(start[name], value) for name, value in trainer.ref_model.state_dict().items())
    assert any(not torch.equal(start[name], value) for name, value in trainer.model.state_dict().items())
    assert not any(parameter.requires_grad for parameter in trainer.ref_model.parameters())
    learned = {id(one) for group in trainer.optimizer.param_groups for one in group["params"]}
    assert not any(id(parameter) in learned for parameter in trainer.ref_model.parameters())
    files = {path.name for path in (tmp_path / "checkpoint-2").iterdir()}
    assert "reasoning_state_0.pt" in files
    assert [name for name in sorted(files) if name.endswith(".safetensors")] == ["model.safetensors"]
    assert losses(trainer)[1]["kl"] > 0


def test_with_adapters_the_reference_is_the_policy_without_them(joint, tmp_path):
    trainer = make_trainer(joint, tmp_path, "bt", lora=True, steps=1, options={"kl_weight": 0.1})
    assert trainer.ref_model is None
    out, _ = rollouts_of(trainer, 2)
    ids = torch.cat([out["prompt_ids"], out["completion_ids"]], dim=1)
    mask = torch.cat([out["prompt_mask"], out["completion_mask"]], dim=1)
    pictures = {name: out[name] for name in ("pixel_values", "image_grid_thw", "num_images")}
    base = MoonForConditionalGeneration.from_pretrained(joint)
    add_fused_lm_head(base, temperature=1.0, outputs=("log_probs", "entropy"))
    counted = out["completion_mask"].bool()
    with torch.no_grad():
        given = (ids, mask, out["completion_ids"].shape[1])
        expected = trainer._get_per_token_logps_and_entropies(base, *given, **pictures)[0]
        policy = trainer._get_per_token_logps_and_entropies(trainer.model, *given, **pictures)[0]
    assert torch.allclose(out["ref_per_token_logps"][counted], expected[counted], atol=1e-5)
    assert (policy - expected)[counted].abs().max() > 1e-4


# Workers


@pytest.mark.slow
@pytest.mark.parametrize("chunk", [None, 6], ids=["whole", "chunks"])
def test_workers_that_prepare_pictures_change_nothing(joint, tmp_path, chunk):
    trained = {}
    for workers in (0, 2):
        trainer = make_trainer(
            joint,
            tmp_path / str(workers),
            "bti",
            steps=3,
            chunk=chunk,
            dataloader_num_workers=workers,
            optim="adamw_torch",
        )
        made = []
        trainer.ahead._loader = lambda rows, make=trainer.ahead._loader, made=made: made.append(rows) or make(rows)
        trainer.train()
        assert len(made) == bool(workers)  # each step's pairs were foreseen
        assert trainer.args.dataloader_num_workers == 0  # TRL's own loader gives numbers
        trained[workers] = trainer
    one, other = trained[0], trained[2]
    assert [kept(one)] == [kept(other)]
    assert len(losses(one)) == 3
    for value, same in zip(one.model.parameters(), other.model.parameters(), strict=True):
        assert torch.equal(value, same)


# Small and broken batches


def test_one_pair_without_other_candidates_trains(joint, tmp_path):
    trainer = make_trainer(
        joint, tmp_path, "b", batch=1, steps=2, queue=0, rewards={"retrieval": 1.0}, options={"completions_steps": 1}
    )
    for one in trainer.ahead.collator.pairs.pairs:
        object.__setattr__(one, "products", one.products[:1])
        for name in ("names", "product_ids", "group_ids"):
            object.__setattr__(one, name, getattr(one, name)[:1])
    trainer.train()
    for entry in losses(trainer):
        assert entry["candidates"] == 1
        assert entry["infonce"] == 0
        assert entry["rank"] == 1
        assert math.isfinite(entry["loss"])
        assert entry["rewards/retrieval_reward/mean"] is None
    table = pyarrow.parquet.read_table(tmp_path / "completions" / "step-000002.parquet").to_pylist()
    assert all(row["advantage"] == 0 and row["candidates"] == 1 for row in table)


def test_a_reasoning_that_ends_at_once_trains(joint, tmp_path):
    class Silent(MoonGRPOTrainer):
        def _generate_single_turn(self, prompt_ids, *rest):
            return [[self.eos_token_ids[0]] for _ in prompt_ids], None

    trainer = make_trainer(joint, tmp_path, "bt", Silent, steps=2, rewards={"format": 0.5, "length": 0.2})
    gradients = Gradients()
    trainer.add_callback(gradients)
    trainer.train()
    assert all(gradients.steps)
    for entry in losses(trainer):
        assert math.isfinite(entry["loss"])
        assert entry["infonce"] > 0
        assert entry["degenerate_groups"] == 4  # the same everywhere


def test_an_unreadable_pair_without_substitute_is_named(joint, tmp_path):
    trainer = make_trainer(joint, tmp_path, "bt", steps=1)
    broken = trainer.ahead.collator.pairs[0]
    broken.products[0]["images"] = [b"no picture"]
    with pytest.raises(
        UnreadableBatchError, match="found 1 pairs without a readable substitute; expected one for each: p0: images"
    ):
        trainer.train()


def test_an_unreadable_pair_is_replaced_on_both_sides(joint, tmp_path):
    class Substituting(Pairs):
        def draw(self, position, attempt=0):
            return pair(70 + attempt, "b")

    trainer = make_trainer(joint, tmp_path, "bt", steps=1, options={"completions_steps": 1})
    pairs = Substituting("bt")
    pairs.pairs[0].query["image"] = b"no picture"
    pairs.pairs[1].products[0]["title"] = "a red bag " * 2000
    trainer.ahead.collator = PromptCollator(trainer.processor, pairs, ROLLOUTS)
    trainer.train()
    table = pyarrow.parquet.read_table(tmp_path / "completions" / "step-000001.parquet").to_pylist()
    assert [row["item"] for row in table[::ROLLOUTS]] == ["q71", "p71", "q1", "p1"]
    assert [line["item"] for line in read_lines(tmp_path / "skipped.jsonl")] == ["q0"]
    cut = {(line["kind"], line["item"]) for line in read_lines(tmp_path / "shortened.jsonl")}
    assert cut == {("product", "p1")}
    assert losses(trainer)[0]["shortened_share"] == pytest.approx(1 / 6)  # of two queries and four products


def test_a_loss_that_is_not_finite_names_the_items(joint, tmp_path):
    trainer = make_trainer(joint, tmp_path, "bt", steps=1)
    with torch.no_grad():
        trainer.model.model.projection.weight.fill_(float("nan"))
    with pytest.raises(NonFiniteLossError, match="nonfinite_batch_0.json"):
        trainer.train()
    found = json.loads((tmp_path / "nonfinite_batch_0.json").read_text())
    assert found["items"] == [["q0", "p0"], ["q1", "p1"]]
    assert found["step"] == 0


def test_a_grpo_loss_that_is_not_finite_names_the_items(joint, tmp_path, monkeypatch):
    trainer = make_trainer(joint, tmp_path, "bt", steps=1)
    monkeypatch.setattr(GRPOTrainer, "_compute_loss", broken_loss(GRPOTrainer._compute_loss))
    with pytest.raises(NonFiniteLossError, match="the loss is nan at step 0"):
        trainer.train()
    assert json.loads((tmp_path / "nonfinite_batch_0.json").read_text())["items"] == [["q0", "p0"], ["q1", "p1"]]


def test_a_gradient_that_is_not_finite_stops_before_the_weights_take_the_step(joint, tmp_path):
    trainer = make_trainer(joint, tmp_path, "bt", steps=1)
    before = {name: value.clone() for name, value in trainer.model.named_parameters()}
    trainer.model.model.projection.weight.register_hook(lambda gradient: gradient * float("inf"))
    with pytest.raises(NonFiniteLossError, match="the gradient's norm is"):
        trainer.train()
    assert json.loads((tmp_path / "nonfinite_batch_0.json").read_text())["items"] == [["q0", "p0"], ["q1", "p1"]]
    assert all(torch.equal(value, before[name]) for name, value in trainer.model.named_parameters())


def broken_loss(known):
    return lambda self, model, inputs: known(self, model, inputs) * float("nan")


def test_chunks_that_do_not_share_the_rollouts_evenly_are_refused(joint, tmp_path):
    with pytest.raises(ValueError, match="rollout_chunk_size: found 5; expected a divisor of 12"):
        settings_of(joint, arguments(tmp_path), chunk=5)


def test_pictures_that_vllm_would_not_see_are_refused(joint, tmp_path):
    trainer = make_trainer(joint, tmp_path, "bt", steps=1)
    trainer.use_vllm = True
    with pytest.raises(
        ValueError, match=r"vllm: found pictures in the prompts of \['p0', 'p1', 'q0', 'q1'\]; expected only texts"
    ):
        rollouts_of(trainer, 2)


def test_weights_in_parts_are_refused(joint, tmp_path):
    class Sharded(MoonGRPOTrainer):
        def create_accelerator_and_postprocess(self):
            super().create_accelerator_and_postprocess()
            self.is_fsdp_enabled = True

    with pytest.raises(ValueError, match="found FSDP or DeepSpeed; expected one process, or several with DDP"):
        make_trainer(joint, tmp_path, "bt", Sharded)


def test_every_option_changes_what_it_says(joint, tmp_path):
    """Each field of the options moves a logged number or a file."""
    base = {"contrastive_weight": 1.0, "kl_weight": 0.5, "completions_steps": 1, "unreasoned_share": 0.3}
    changes = {
        "contrastive_weight": 0.5,
        "grpo_weight": 2.0,
        "unreasoned_share": 1.0,
        "negative_margin": 0.0,
        "queue_warmup_steps": 2,
        "kl_weight": 1.0,
    }
    read_elsewhere = {"stage", "cold_start", "ce_weight", "evaluate_reasoning", "rewards", "vllm"}
    read_elsewhere |= {"rollouts", "rollout_chunk_size", "rollout_temperature"}  # by `grpo_arguments`
    read_elsewhere |= {"target_tokens"}  # by the length reward, see test_forms_with_reasoning
    assert {*changes, "completions_steps"} - {*OF_LOSS} == {
        one.name for one in dataclasses.fields(ReasoningArguments)
    } - read_elsewhere

    def last_loss(name, **change):
        trainer = make_trainer(joint, tmp_path / name, "bt", steps=2, options=base | change)
        trainer.train()
        return losses(trainer)[-1]["loss"]

    without = last_loss("base")
    for name, value in changes.items():
        assert last_loss(name, **{name: value}) != pytest.approx(without, abs=1e-7), name
