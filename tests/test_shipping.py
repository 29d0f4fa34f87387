"""A checkpoint is sufficient by itself: loaded where our packages cannot be imported, without network, it gives the same."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from isolated import BLOCKED
from PIL import Image
from sentence_transformers import SentenceTransformer
from transformers import AutoModel, AutoModelForImageTextToText, AutoProcessor

from training.model.checkpoint import mark_adapter

ROOT = Path(__file__).resolve().parents[1]

# Runs in the isolated process; the same text runs here for the expected values.
COMPUTE = """
import numpy as np
import torch
from PIL import Image

IMAGE = Image.fromarray((np.arange(96 * 64 * 3).reshape(96, 64, 3) % 251).astype("uint8"))
PRODUCTS = [
    {"title": "red running shoes", "category": ["Fashion", "Shoes"], "attributes": {"colour": "red"}, "images": [IMAGE, IMAGE]},
    {"title": "brown bag", "images": IMAGE, "core_box": [8, 8, 50, 80]},
    {"title": "a mug"},
]
MIXED = ["red shoes", IMAGE, {"text": "same in blue", "image": IMAGE}, *PRODUCTS, {"text": "a mug"}, np.asarray(IMAGE)]


def compute(model, writer, processor, encoder):
    batch = processor(products=PRODUCTS, return_tensors="pt")
    with torch.no_grad():
        vectors = model(**batch).embeddings
    prompt = processor(
        text=["<|vision_start|><|image_pad|><|vision_end|>colour:", "a mug"],
        images=[[IMAGE], []],
        padding=True,
        padding_side="left",
        return_tensors="pt",
    )
    found = {f"batch_{name}": value for name, value in batch.items()}
    found["embeddings"] = vectors
    found["generated"] = writer.generate(**prompt, max_new_tokens=6, min_new_tokens=6, do_sample=False)
    found["mixed"] = encoder.encode(MIXED, batch_size=3)
    found["query"] = encoder.encode_query(["red shoes"])
    found["document"] = encoder.encode_document(PRODUCTS)
    if model.config.max_reasoning_tokens:
        thought = model.embed(PRODUCTS, reasoning="generate", thinking={"max_tokens": 6})
        found["gates"] = thought.modality_gates
        found["written"] = thought.reasoning_ids
        found["thought"] = thought.embeddings
        found["encoded_thought"] = encoder.encode(PRODUCTS, reasoning="generate", thinking={"max_tokens": 6})
    return {name: np.asarray(value) for name, value in found.items()}
"""

ISOLATED = (
    BLOCKED
    + COMPUTE
    + """
from sentence_transformers import SentenceTransformer
from transformers import AutoModel, AutoModelForImageTextToText, AutoProcessor

folder, out, again = sys.argv[1:]
for source, target in ((folder, out + "-1.npz"), (again, out + "-2.npz"), (again + "-st", out + "-3.npz")):
    model = AutoModel.from_pretrained(source, trust_remote_code=True).eval()
    writer = AutoModelForImageTextToText.from_pretrained(source, trust_remote_code=True).eval()
    processor = AutoProcessor.from_pretrained(source, trust_remote_code=True)
    encoder = SentenceTransformer(source, trust_remote_code=True)
    np.savez(target, **compute(model, writer, processor, encoder))
    if source == folder:
        writer.save_pretrained(again)
        processor.save_pretrained(again)
        import shutil
        for name in ("modules.json", "config_sentence_transformers.json", "sentence_transformer_moon.py"):
            shutil.copy(f"{folder}/{name}", f"{again}/{name}")
        encoder.save_pretrained(again + "-st")
"""
)

namespace: dict = {}
exec(compile(COMPUTE, "compute", "exec"), namespace)


@pytest.mark.parametrize(
    ("backbone", "tied", "preset"),
    [
        pytest.param("qwen3_vl", True, "moon1", marks=pytest.mark.slow),
        pytest.param("qwen2_5_vl", False, "moon1", marks=pytest.mark.slow),
        pytest.param("qwen3_vl", False, "moon2", marks=pytest.mark.slow),
        pytest.param("qwen2_5_vl", True, "moon2", marks=pytest.mark.slow),
        ("qwen3_vl", True, "moon3"),
        pytest.param("qwen2_5_vl", False, "moon3", marks=pytest.mark.slow),
    ],
)
def test_a_process_without_our_packages_computes_the_same_and_saves_it_whole(
    tiny_moon, tmp_path, backbone, tied, preset
):
    fusion = {"fusion_source": "raw"} if preset == "moon3" and not tied else {}  # a variant of each source
    folder = tiny_moon(backbone, tie_word_embeddings=tied, trained=True, preset=preset, **fusion)
    script = tmp_path / "isolated.py"
    script.write_text(ISOLATED)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(tmp_path / "modules"), "OMP_NUM_THREADS": "1"}
    run = subprocess.run(
        [sys.executable, str(script), str(folder), str(tmp_path / "found"), str(tmp_path / "again")],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    expected = namespace["compute"](
        AutoModel.from_pretrained(folder).eval(),
        AutoModelForImageTextToText.from_pretrained(folder).eval(),
        AutoProcessor.from_pretrained(folder),
        SentenceTransformer(str(folder)),
    )
    assert len(expected) >= 10
    for number in (1, 2, 3):
        found = np.load(tmp_path / f"found-{number}.npz")
        assert set(found.files) == set(expected)
        for name, value in expected.items():
            np.testing.assert_allclose(found[name], value, rtol=1e-6, atol=1e-6, err_msg=f"{name}, load {number}")


IN_PLACE = """
import sys
from pathlib import Path
import numpy as np
import modeling_moon, processing_moon
from sentence_transformers import SentenceTransformer
from transformers import AutoModel, AutoModelForImageTextToText, AutoProcessor

folder, cache, out = sys.argv[1:]
model = AutoModel.from_pretrained(folder).eval()
writer, processor = AutoModelForImageTextToText.from_pretrained(folder), AutoProcessor.from_pretrained(folder)
encoder = SentenceTransformer(folder)
for loaded in (model, writer, processor, encoder[0].model, encoder[0].processor):
    assert type(loaded).__module__.split(".")[0] in ("modeling_moon", "processing_moon"), type(loaded)
batch = processor(queries=[{"text": "red shoes"}], return_tensors="pt")
vectors = model(**batch).embeddings.detach().numpy()
assert np.abs(encoder.encode(["red shoes"]) - vectors).max() < 1e-5
encoder.save_pretrained(out)
assert np.abs(SentenceTransformer(out).encode(["red shoes"]) - vectors).max() < 1e-5
assert not list(Path(cache).iterdir()), list(Path(cache).iterdir())
"""


def test_with_our_packages_imported_no_code_is_copied_into_the_cache_and_none_of_the_checkpoints_is_run(
    tiny_moon, tmp_path
):
    folder, cache, out = tiny_moon("qwen3_vl", preset="moon3"), tmp_path / "modules", tmp_path / "out"
    cache.mkdir()
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(cache), "OMP_NUM_THREADS": "1"}
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    run = subprocess.run(
        [sys.executable, "-c", IN_PLACE, str(folder), str(cache), str(out)],
        cwd=tmp_path,
        env=environment | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    shipped = {
        path.name for package in ("modeling_moon", "processing_moon") for path in (ROOT / package).glob("*_moon.py")
    }
    assert {path.name for path in out.glob("*.py")} == shipped
    modules = json.loads((out / "modules.json").read_text())
    assert [module["type"] for module in modules] == ["sentence_transformer_moon.MoonTransformer"]


WITHOUT_CONSENT = """
import sys
from sentence_transformers import SentenceTransformer
from transformers import AutoModel
for load in (AutoModel.from_pretrained, SentenceTransformer):
    try:
        load(sys.argv[1])
    except ValueError as error:
        assert "trust_remote_code" in str(error), error
    else:
        raise AssertionError(load)
assert "modeling_moon" not in sys.modules
"""


@pytest.mark.slow
def test_neither_the_package_nor_the_flag_loads_nothing_and_runs_no_code_of_the_checkpoint(tiny_moon, tmp_path):
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(tmp_path), "OMP_NUM_THREADS": "1"}
    run = subprocess.run(
        [sys.executable, "-c", WITHOUT_CONSENT, str(tiny_moon("qwen3_vl", preset="moon3"))],
        cwd=tmp_path,
        env=environment | {"PYTHONPATH": ""},
        stdin=subprocess.DEVNULL,  # the libraries ask a person where there is one
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    assert not list(tmp_path.rglob("*.py"))


def test_a_fresh_checkpoint_holds_all_the_code_that_ships(tiny_moon):
    shipped = {
        path.name for package in ("modeling_moon", "processing_moon") for path in (ROOT / package).glob("*_moon.py")
    }
    for preset in ("moon1", "moon3"):
        assert {path.name for path in tiny_moon("qwen3_vl", preset=preset).glob("*.py")} == shipped


def test_sentence_transformers_vectors_equal_the_model_and_do_not_depend_on_the_batch(tiny_moon):
    folder = str(tiny_moon("qwen3_vl"))
    encoder = SentenceTransformer(folder)
    model, processor = AutoModel.from_pretrained(folder).eval(), AutoProcessor.from_pretrained(folder)
    mixed = namespace["MIXED"]
    vectors = encoder.encode(mixed, batch_size=8)
    np.testing.assert_allclose(np.stack([encoder.encode(item) for item in mixed]), vectors, rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        products = model(**processor(products=namespace["PRODUCTS"], return_tensors="pt")).embeddings
        query = model(**processor(queries=[{"text": "red shoes"}], return_tensors="pt")).embeddings
    np.testing.assert_allclose(vectors[3:6], products, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(vectors[0], query[0], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(encoder.encode_document(mixed[3:6]), products, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(encoder.encode_query("red shoes"), query[0], rtol=1e-5, atol=1e-5)
    assert np.abs(encoder.encode_document("red shoes") - encoder.encode_query("red shoes")).max() > 1e-5


def test_sentence_transformers_let_the_model_think_first(tiny_moon):
    folder = str(tiny_moon("qwen3_vl", preset="moon3", trained=True))
    encoder, model = SentenceTransformer(folder), AutoModel.from_pretrained(folder).eval()
    products = [record | {"reasoning": {"colour": "red"}} for record in namespace["PRODUCTS"]]
    thinking = {"max_tokens": 5}
    for reasoning in ("none", "generate", "given"):
        expected = model.embed(products, reasoning=reasoning, thinking=thinking).embeddings.detach()
        found = encoder.encode(products, reasoning=reasoning, thinking=thinking, batch_size=2)
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
        alone = encoder.encode_document(products, reasoning=reasoning, thinking=thinking, batch_size=1)
        np.testing.assert_allclose(alone, expected, rtol=1e-4, atol=1e-5)
    assert np.abs(encoder.encode(products) - encoder.encode(products, reasoning="generate")).max() > 1e-4
    with pytest.raises(ValueError, match="reasoning"):
        SentenceTransformer(str(tiny_moon("qwen3_vl"))).encode(["red shoes"], reasoning="generate")


def test_sentence_transformers_save_trained_tied_embeddings_once(tiny_moon, tmp_path):
    folder = str(tiny_moon("qwen3_vl", preset="moon3", trained=True))
    encoder = SentenceTransformer(folder)
    with torch.no_grad():
        encoder[0].model.get_input_embeddings().weight.mul_(1.5)
    expected = encoder.encode(namespace["PRODUCTS"], reasoning="generate")
    encoder.save_pretrained(str(tmp_path))
    writer = AutoModelForImageTextToText.from_pretrained(tmp_path)
    assert writer.lm_head.weight is writer.get_input_embeddings().weight
    again = SentenceTransformer(str(tmp_path)).encode(namespace["PRODUCTS"], reasoning="generate")
    np.testing.assert_allclose(again, expected, rtol=1e-5, atol=1e-5)


def test_sentence_transformers_options_work(tiny_moon):
    encoder = SentenceTransformer(str(tiny_moon("qwen3_vl")), truncate_dim=16)
    texts = ["red shoes", "a blue mug", "brown bag"]
    assert encoder.encode(texts).shape == (3, 16)
    assert SentenceTransformer(str(tiny_moon("qwen3_vl"))).get_embedding_dimension() == 32
    assert encoder.encode(texts, precision="int8").dtype == np.int8
    assert encoder.encode(texts, precision="binary").shape == (3, 2)
    similarity = encoder.similarity(encoder.encode(texts), encoder.encode(texts))
    torch.testing.assert_close(similarity.diagonal(), torch.ones(3))


def test_a_pool_of_processes_gives_the_same_vectors(tiny_moon):
    encoder = SentenceTransformer(str(tiny_moon("qwen3_vl")))
    items = [
        {"title": f"mug {number}", "images": Image.new("RGB", (64, 64), (number * 20, 80, 120))} for number in range(6)
    ]
    pool = encoder.start_multi_process_pool(["cpu", "cpu"])
    try:
        vectors = encoder.encode(items, pool=pool, chunk_size=2)
    finally:
        encoder.stop_multi_process_pool(pool)
    np.testing.assert_allclose(vectors, encoder.encode(items), rtol=1e-5, atol=1e-5)


def test_an_input_that_is_no_record_is_refused_by_name(tiny_moon):
    encoder = SentenceTransformer(str(tiny_moon("qwen3_vl")))
    with pytest.raises(ValueError, match="titel"):
        encoder.encode([{"titel": "red shoes"}])
    with pytest.raises(ValueError, match="image"):
        encoder.encode([{"image": b"not a picture"}])
    with pytest.raises(ValueError, match="one message of role 'user'"):
        encoder.encode([[{"role": "system", "content": "hello"}, {"role": "user", "content": "red shoes"}]])


@pytest.mark.parametrize(
    ("encode", "message"),
    [
        ("encode_document", r"product 0, field 'name': unknown field.*; expected one of title, description, images"),
        ("encode_query", r"record 0, field 'name': unknown.*expected of a product title, .*; of a query text, image"),
        ("encode", r"record 0, field 'name': unknown.*expected of a product title, .*; of a query text, image"),
    ],
)
def test_an_unknown_key_is_named_on_its_own_side(tiny_moon, encode, message):
    encoder = SentenceTransformer(str(tiny_moon("qwen3_vl")))
    with pytest.raises(ValueError, match=message):
        getattr(encoder, encode)([{"name": "red shoes"}])


def test_a_token_budget_without_room_for_any_item_is_refused_where_it_is_set(tiny_moon):
    encoder = SentenceTransformer(str(tiny_moon("qwen3_vl", preset="moon3")))
    before = encoder.max_seq_length
    for value in (0, 3, True, 64.0, None):
        with pytest.raises(
            ValueError, match=rf"max_seq_length: found {value!r}; expected a whole number of at least"
        ) as error:
            encoder.max_seq_length = value
    assert encoder.max_seq_length == before
    least = int(re.search(r"at least (\d+)", str(error.value)).group(1))
    encoder.max_seq_length = least
    assert encoder.encode_query(["a"]).shape == (1, 32)
    with pytest.raises(ValueError, match=f"max_seq_length: found {least - 1}; .* at least {least}"):
        encoder.max_seq_length = least - 1


def test_what_does_not_fit_into_the_token_budget_is_told_by_the_name_that_it_was_set_by(tiny_moon):
    encoder = SentenceTransformer(str(tiny_moon("qwen3_vl")))
    encoder.max_seq_length = 200
    with pytest.raises(
        ValueError, match=r"field 'max_seq_length': .* more than max_seq_length=200; expected a larger max_seq"
    ):
        encoder.encode(["red shoes"], prompt="Find what this shopper wants, word by word. " * 40)


@pytest.mark.parametrize(
    "path", ["photo.jpg", "shop/Pictures/1.PNG", "https://host.test/a/b.webp?width=200", " a.jpeg\n"]
)
def test_the_path_of_a_picture_is_never_read_as_words_in_silence(tiny_moon, path):
    encoder = SentenceTransformer(str(tiny_moon("qwen3_vl")))
    for encode in (encoder.encode, encoder.encode_query, encoder.encode_document):
        with pytest.raises(ValueError, match=r'input \d, .*s path or URL; expected \{"image": path\} or Image.open'):
            encode(["red shoes", path], batch_size=2)
    with pytest.raises(ValueError, match=r"text 1, .*a picture's path or URL; expected images="):
        AutoProcessor.from_pretrained(tiny_moon("qwen3_vl"))(text=["red shoes", path])


def test_words_about_a_file_and_records_that_say_what_they_mean_are_words(tiny_moon):
    encoder = SentenceTransformer(str(tiny_moon("qwen3_vl")))
    words = [
        "mug with photo.jpg on it",
        "my photo.jpg",
        ".jpg",
        "Node.js",
        "https://host.test/item?id=3",
        "shop/photos/",
    ]
    assert encoder.encode(words).shape == (6, 32)
    assert encoder.encode_document([{"title": "photo.jpg"}, {"text": "photo.jpg"}]).shape == (2, 32)


def test_an_adapter_alone_says_what_to_load_instead(tmp_path):
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text("{}")
    mark_adapter(adapter)
    with pytest.raises(
        ValueError, match=r"adapter holds an adapter without its base .*expected the whole model, .*final"
    ):
        SentenceTransformer(str(adapter))


def test_a_user_message_is_a_query(tiny_moon):
    encoder = SentenceTransformer(str(tiny_moon("qwen3_vl")))
    image = namespace["IMAGE"]
    message = {"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": "in blue"}]}
    expected = encoder.encode([{"text": "in blue", "image": image}, "red shoes"])
    found = encoder.encode([[message], [{"role": "user", "content": "red shoes"}]])
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
