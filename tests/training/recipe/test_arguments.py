import json
from pathlib import Path

import pytest
import yaml

from training.recipe import arguments
from training.recipe.arguments import RecipeError, parse_recipe
from training.recipe.files import read_recipe_file
from training.recipe.same_recipe import differing_keys

RECIPES = sorted((Path(__file__).resolve().parents[3] / "training" / "recipes").glob("*.yaml"))
LEAST = {"small_base": {"hidden_size": 64}, "max_steps": 10}


@pytest.fixture
def recipe(tmp_path):
    def write(name="recipe.yaml", **values):
        path = tmp_path / name
        path.write_text(yaml.safe_dump(values if "extends" in values else {**LEAST, **values}))
        return str(path)

    return write


def test_recipe_values_are_defaults_that_the_command_line_replaces(recipe):
    path = recipe(seed=1, save_steps=7, query_mix={"i": 1}, data=["catalogue"])
    parsed = parse_recipe([path, "--seed", "5", "--query_mix.t", "2", "--no_derived_queries"])
    assert (parsed.training.seed, parsed.training.save_steps) == (5, 7)
    assert parsed.pairs.query_mix == {"i": 1, "t": 2}
    assert parsed.pairs.derived_queries is False
    assert parse_recipe([path, "--query_mix", "{mm: 3}"]).pairs.query_mix == {"mm": 3}


def test_the_papers_settings_are_the_defaults(recipe):
    parsed = parse_recipe([recipe()])
    assert parsed.pairs.query_mix == {"i": 12, "t": 3, "mm": 2}
    assert parsed.training.warmup_steps == 0.05
    assert parsed.training.lr_scheduler_type == "cosine"
    assert parsed.training.output_dir == "runs/recipe"
    assert parsed.resolved["temperature"] == 0.05


def test_a_number_that_yaml_reads_as_text_is_a_number(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text("small_base: {hidden_size: 64}\nmax_steps: 3\nlearning_rate: 1e-4\n")
    assert parse_recipe([str(path)]).training.learning_rate == 1e-4


def test_a_resolved_recipe_is_the_same_recipe(recipe, tmp_path):
    parsed = parse_recipe([recipe(temperature=0.1), "--max_steps", "33"])
    resolved = tmp_path / "recipe_2.yaml"
    resolved.write_text(yaml.safe_dump(parsed.resolved))
    assert differing_keys(parsed.resolved, parse_recipe([str(resolved)]).resolved) == []


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"learning_rat": 1}, "unknown key 'learning_rat'; the nearest known key is 'learning_rate'"),
        ({"warmup_ratio": 0.1}, "unknown key 'warmup_ratio'; the nearest known key is 'warmup_steps'"),
        ({"seed": "seven"}, r"seed: found 'seven' \(text\); expected an integer"),
        ({"seed": True}, r"seed: found True \(true or false\); expected an integer"),
        ({"temperature": [1]}, "temperature: found .* expected a number"),
        (
            {"per_device_train_batch_size": 1, "hard_negatives": 0, "queue_steps": 0, "gradient_accumulation_steps": 4},
            "per_device_train_batch_size: found 1 in one process with hard_negatives 0 and queue_steps 0: .*the loss is 0",
        ),
        (
            {
                "per_device_train_batch_size": 1,
                "hard_negatives": 0,
                "queue_steps": 2,
                "queue_warmup_steps": 9,
                "max_steps": 9,
            },
            r"queue_steps 2 \(never past its queue_warmup_steps\)",
        ),
        ({"temperature": 0}, "temperature: found 0; expected a number above 0$"),
        ({"derived_queries": "perhaps"}, "derived_queries: found 'perhaps'.*expected true or false"),
        ({"architecture": "tower"}, "architecture: found 'tower'; expected moon or dual_tower"),
        ({"query_mix": {"picture": 1}}, "query_mix: unknown key 'picture'"),
        ({"query_mix": {"i": 0}}, "at least one share greater than 0"),
        ({"query_mix": {"i": -1}}, "query_mix.i: found -1; expected a number of at least 0"),
        ({"small_base": 3}, "small_base: found 3"),
        ({"base": "./nowhere"}, "expected exactly one of them"),
        ({"base": "./nowhere", "small_base": None}, "base: found no folder .*nowhere"),
        ({"small_base": None}, "base and small_base: neither is set"),
        ({"data": ["/no/such/folder"]}, "data.path: found nothing at /no/such/folder"),
        (
            {"data": [{"path": "catalogue", "wieght": 2}]},
            "data: unknown key 'wieght'; the nearest known key is 'weight'",
        ),
        ({"data": [{"queries": "x"}]}, "either a path or products"),
        ({"data": [{"path": "catalogue", "weight": 0}]}, "data.weight: found 0"),
        ({"lora": {"rank": 8}}, "lora: unknown key 'rank'"),
        ({"lora": {"r": 0}}, "lora.r: found 0; expected a number of at least 1"),
        ({"lora": {"r": "many"}}, r"lora.r: found 'many' \(text\); expected an integer"),
        ({"lora": {"dropout": 1}}, "lora.dropout: found 1; expected a number below 1"),
        ({"freeze": [3]}, r"freeze\[0\]: found 3 \(an integer\); expected text"),
        ({"preset": "moon9"}, "preset: found 'moon9'; expected moon1"),
        ({"moon": {"embeding_dim": 8}}, "moon: unknown key 'embeding_dim'; the nearest known key is 'embedding_dim'"),
        ({"moon": {"seed": 8}}, "moon: unknown key 'seed'"),
        ({"small_base": {"hiden_size": 8}}, "small_base: unknown key 'hiden_size'.* 'hidden_size'"),
        ({"catalogue": {"product": 8}}, "catalogue: unknown key 'product'; the nearest known key is 'products'"),
        ({"instructions": {"produkt": "x"}}, "instructions: unknown key 'produkt'.* 'product'"),
        ({"instructions": {"query": " "}}, "instructions.query: found ' '; expected text that is not empty"),
        ({"instructions": {"query": 3}}, r"instructions.query: found 3 \(an integer\); expected text"),
        ({"evaluate_products": 0}, "evaluate_products: found 0; expected a number of at least 1"),
        ({"fsdp": "full_shard"}, "'fsdp' cannot be set; the launcher shards a model over GPUs: .*fsdp2.yaml"),
        ({"accelerator_config": {"dispatch_batches": True}}, "'accelerator_config' cannot be set"),
        ({"data_seed": 5}, "'data_seed' cannot be set; seed decides which pairs are drawn"),
        ({"eval_steps": 5}, "'eval_steps' cannot be set; .* use evaluate_before and evaluate_after"),
        ({"hard_negatives": -1}, "hard_negatives: found -1"),
        ({"max_image_tokens": 0}, "max_image_tokens: found 0"),
        ({"max_steps": -1}, "max_steps and train_minutes: neither is set"),
        ({"train_minutes": 0}, "train_minutes: found 0; expected a number above 0"),
        ({"num_train_epochs": 3}, "'num_train_epochs' cannot be set; .* set max_steps"),
        ({"lr_scheduler_type": "zigzag"}, "zigzag"),
        ({"learning_rate": -1}, "learning_rate: found -1; expected a number of at least 0$"),
        ({"learning_rate": float("nan")}, "learning_rate: found nan; expected a finite number"),
        ({"weight_decay": -0.1}, "weight_decay: found -0.1"),
        ({"per_device_train_batch_size": 0}, "per_device_train_batch_size: found 0; expected a number of at least 1"),
        ({"per_device_eval_batch_size": -2}, "per_device_eval_batch_size: found -2"),
        ({"seed": -1}, "seed: found -1; expected a number of at least 0"),
        ({"seed": 2**32}, "seed: found 4294967296; expected a number below 4294967296"),
        ({"report_to": "paper"}, "report_to: found 'paper', which is not installed; expected one of none"),
        ({"catalogue": {"products": "many"}}, r"catalogue.products: found 'many' \(text\); expected an integer"),
    ],
)
def test_what_cannot_work_is_refused_by_key(recipe, values, message):
    with pytest.raises(RecipeError, match=message):
        parse_recipe([recipe(**values)])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--sav_steps", "3"], "unknown key 'sav_steps'; the nearest known key is 'save_steps'"),
        (["--seed", "x"], r"seed: found 'x' \(text\); expected an integer"),
        (["--resume_from_checkpoint", "x"], "run the same command again"),
        (["stray"], "found 'stray' without its --key"),
        (["--seed.x", "3"], "found --seed.x, but seed is not a mapping"),
        (["--moon.embedding_dim"], "found --moon.embedding_dim without a value"),
        (["--moon.embedding_dim", "{8"], r"--moon.embedding_dim: found '\{8'; expected a YAML value"),
    ],
)
def test_what_the_command_line_gets_wrong_is_named(recipe, arguments, message):
    with pytest.raises(RecipeError, match=message):
        parse_recipe([recipe(), *arguments])


def test_lists_are_written_on_the_command_line_as_words_or_as_yaml(recipe):
    for written in (
        ["--matryoshka_dims", "16", "32"],
        ["--matryoshka_dims", "[16, 32]"],
        ["--matryoshka-dims=[16,32]"],
    ):
        assert parse_recipe([recipe(), *written, "--seed", "3"]).loss.matryoshka_dims == [16, 32]
    assert parse_recipe([recipe(freeze=["*a*"]), "--freeze", "[]"]).model.freeze == []
    entry = {"path": "catalogue", "weight": 2}
    assert parse_recipe([recipe(), "--data", "[{path: catalogue, weight: 2}]"]).data.data == [entry]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--matryoshka_dims", "[16"], r"--matryoshka_dims: found '\[16'; expected a list such as"),
        (
            ["--matryoshka_dims", "[16]", "32"],
            r"--matryoshka_dims: found values after '\[16\]'; expected a single list",
        ),
        (["--matryoshka_dims", "[a]"], r"matryoshka_dims\[0\]: found 'a' \(text\); expected an integer"),
        (["--no_evaluate_after"], "found --no_evaluate_after; expected --evaluate_after false"),
        (["--no-evaluate-after"], "found --no_evaluate_after; expected --evaluate_after false"),
        (["--no_seed"], "found --no_seed; expected --seed value"),
        (["--lr", "1e-3"], "unknown key 'lr'; the nearest known key is 'learning_rate'"),
        (["--bs", "4"], "'per_device_train_batch_size'"),
        (["--batch_size", "4"], "'per_device_train_batch_size'"),
        (
            ["--epochs", "4"],
            "unknown key 'epochs'; training pairs are drawn without epochs; set max_steps or train_minutes",
        ),
        (["--steps", "4"], "'max_steps'"),
        (["--warmup_ratio", "0.1"], "'warmup_steps'"),
        (["--wd", "0.1"], "'weight_decay'"),
    ],
)
def test_what_the_command_line_nearly_says_is_told_as_it_is_said(recipe, arguments, message):
    with pytest.raises(RecipeError, match=message):
        parse_recipe([recipe(), *arguments])


def test_an_optimizer_whose_library_is_missing_is_refused_by_key(recipe, monkeypatch):
    monkeypatch.setattr("transformers.trainer_optimizer.is_schedulefree_available", lambda: False)
    monkeypatch.setattr("transformers.trainer_optimizer.is_galore_torch_available", lambda: False)
    for name in ("schedule_free_adamw", "galore_adamw"):
        with pytest.raises(RecipeError, match=f"optim: found '{name}': .*expected one whose library is installed"):
            parse_recipe([recipe(), "--optim", name])
    assert parse_recipe([recipe(), "--optim", "adafactor"]).training.optim == "adafactor"


@pytest.mark.parametrize("stage", ["cold_start", "grpo"])
def test_a_stage_of_reasoning_is_refused_by_key_for_a_model_that_does_not_reason(recipe, tmp_path, stage):
    with pytest.raises(RecipeError, match=f"stage: found '{stage}' .*preset, moon.max_reasoning_tokens: found moon1"):
        parse_recipe([recipe(), "--stage", stage])
    with pytest.raises(RecipeError, match=r"found moon3 and max_reasoning_tokens: None\); expected preset: moon3"):
        parse_recipe([recipe(preset="moon3", moon={"max_reasoning_tokens": None}), "--stage", stage])
    assert parse_recipe([recipe(preset="moon3"), "--stage", stage]).reasoning.stage == stage
    base = tmp_path / "base"
    base.mkdir()
    start = recipe(small_base=None, base=str(base), preset="moon1")
    for budget, refused in ((None, True), (16, False)):
        (base / "config.json").write_text(json.dumps({"model_type": "moon", "max_reasoning_tokens": budget}))
        if refused:
            with pytest.raises(RecipeError, match="base: found the Moon checkpoint .* with max_reasoning_tokens"):
                parse_recipe([start, "--stage", stage])
        else:
            assert parse_recipe([start, "--stage", stage]).model.base == str(base)


def test_a_command_line_without_a_recipe_is_refused():
    with pytest.raises(RecipeError, match="recipe: found none"):
        parse_recipe(["--seed", "3"])
    with pytest.raises(RecipeError, match="found no file"):
        parse_recipe(["nowhere.yaml"])


def test_a_recipe_extends_another_key_by_key(recipe):
    recipe("parent.yaml", seed=3, query_mix={"i": 1, "t": 1})
    path = recipe("child.yaml", extends="parent.yaml", architecture="dual_tower", query_mix={"t": 5})
    parsed = parse_recipe([path])
    assert (parsed.training.seed, parsed.model.architecture) == (3, "dual_tower")
    assert parsed.pairs.query_mix == {"i": 1, "t": 5}


def test_circles_and_repeated_keys_are_refused(recipe, tmp_path):
    recipe("one.yaml", extends="two.yaml")
    with pytest.raises(RecipeError, match="extends itself"):
        parse_recipe([recipe("two.yaml", extends="one.yaml")])
    twice = tmp_path / "twice.yaml"
    twice.write_text("seed: 1\nmax_steps: 2\nseed: 3\n")
    with pytest.raises(RecipeError, match="key 'seed' found twice"):
        read_recipe_file(twice)


def test_keys_that_do_not_change_the_result_may_differ_on_resume(recipe):
    old = parse_recipe([recipe()]).resolved
    assert differing_keys(old, parse_recipe([recipe(save_steps=3, dataloader_num_workers=2)]).resolved) == []
    changed = parse_recipe([recipe(learning_rate=0.5, moon={"embedding_dim": 8})]).resolved
    assert differing_keys(old, changed) == ["learning_rate", "moon"]


def test_a_measured_number_of_steps_is_not_a_difference(recipe):
    timed = parse_recipe([recipe(train_minutes=1, max_steps=-1)]).resolved
    assert differing_keys({**timed, "max_steps": 812}, timed) == []


def test_a_run_that_stopped_before_its_steps_were_measured_is_the_same_run(recipe):
    timed = parse_recipe([recipe(train_minutes=1, max_steps=-1)]).resolved
    assert timed["max_steps"] == -1
    assert differing_keys(timed, {**timed, "max_steps": 812}) == []
    assert differing_keys({**timed, "max_steps": 7}, {**timed, "max_steps": 812}) == ["max_steps"]


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_that_is_shipped_can_be_read(path, request, monkeypatch):
    monkeypatch.chdir(path.parents[2])
    if path.name.startswith(("shared_", "shops_", "peers_", "evidence_")):
        request.getfixturevalue("shared_data")
    recipe, replaced = read_recipe_file(path), []
    if "runs/" in str(recipe.get("data")):  # its own command draws the tables
        replaced += ["--data", "catalogue"]
    if "runs/" in str(recipe.get("evaluate_data")):
        replaced += ["--evaluate_data", "null"]
    if str(recipe.get("base")).startswith("runs/"):  # the stage before makes it
        monkeypatch.setattr(arguments, "_check_place", lambda key, name: None)
    monkeypatch.setattr(arguments, "is_vector_folder", lambda folder: True)  # nor are the teachers' vectors there
    parsed = parse_recipe([str(path), *replaced])
    assert parsed.training.max_steps > 0 or parsed.training.train_minutes > 0
