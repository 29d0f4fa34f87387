"""A pruned vocabulary encodes its corpus as before, any text still, and the model computes the same for the corpus."""

import json
import random
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from table_files import write_table
from tiny_donors import TEXTS, donor_tokenizer, tiny_donor
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoTokenizer, PreTrainedTokenizerFast

from processing_moon import MoonProcessor
from product_data.table_files import TableError
from training.model.corpus_tokens import corpus_ids, read_corpus, texts_of
from training.model.pruned_vocabulary import VocabularyError, prune_vocabulary
from training.model.text_base import make_text_base

VISION = {"hidden_size": 32, "depth": 2, "max_image_tokens": 4, "min_image_tokens": 1}
CORPUS = ["red leather bags for women", "navy striped cotton, size M", "皮包 👟"]
PRODUCTS = [
    {
        "product_id": "1",
        "title": "Red bags",
        "description": "brown leather with a gold sole",
        "category_path": "Home > Mugs",
        "attributes": '{"colour": "navy", "size": "42"}',
    }
]
QWEN3 = Path(__file__).resolve().parents[4] / "shared" / "weights" / "qwen3_tokenizer.json"


def saved(tokenizer, folder):
    tokenizer.save_pretrained(folder)
    return AutoTokenizer.from_pretrained(folder)


def assert_same_tokens(before, after, kept, texts):
    """Assert that texts have the same ids, by way of the old id of each new one."""
    for text in texts:
        expected = before(text, add_special_tokens=False)["input_ids"]
        found = after(text, add_special_tokens=False)["input_ids"]
        assert [kept[id_] for id_ in found] == expected, text


def pruned(before, folder, texts):
    kept = prune_vocabulary(folder, {id_ for text in texts for id_ in before(text)["input_ids"]})
    return AutoTokenizer.from_pretrained(folder), kept


def test_each_text_of_the_corpus_keeps_its_tokens_and_the_rest_goes(tmp_path):
    before = saved(donor_tokenizer(), tmp_path)
    after, kept = pruned(before, tmp_path, CORPUS)
    assert_same_tokens(before, after, kept, CORPUS)
    assert len(after) < len(before) - 50
    assert kept == sorted(kept)
    assert after.convert_ids_to_tokens(range(len(after))) == before.convert_ids_to_tokens(kept)
    assert [after.convert_tokens_to_ids(token) for token in ("<|endoftext|>", "<|im_end|>")] == [0, 2]
    words = " ".join(CORPUS)
    gone = [
        token for token in before.get_vocab() if len(token) > 4 and token.strip("Ġ") not in words and token.isascii()
    ]
    assert any(token not in after.get_vocab() for token in gone)
    model = json.loads((tmp_path / "tokenizer.json").read_text())["model"]
    assert all(left + right in model["vocab"] for left, right in model["merges"])


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=30))
def test_any_text_can_be_encoded(text):
    before, after = tokenizers()
    assert after.decode(after(text)["input_ids"], clean_up_tokenization_spaces=False) == text
    assert before.decode(before(text)["input_ids"], clean_up_tokenization_spaces=False) == text


_MADE = []


def tokenizers():
    import tempfile

    if not _MADE:
        with tempfile.TemporaryDirectory() as folder:
            before = saved(donor_tokenizer(), folder)
            _MADE.extend((before, pruned(before, Path(folder), CORPUS)[0]))
    return _MADE


def test_any_corpus_keeps_its_tokens(tmp_path):
    """Random corpora of the training texts' syllables, of which many are results of joins of others."""
    before = saved(donor_tokenizer(), tmp_path / "whole")
    generator = random.Random(0)
    pieces = [word[i : i + 4] for text in TEXTS for word in text.split() for i in range(0, len(word), 2)]
    for number in range(15):
        corpus = [" ".join("".join(generator.sample(pieces, 3)) for _ in range(4)) for _ in range(6)]
        folder = shutil.copytree(tmp_path / "whole", tmp_path / str(number))
        after, kept = pruned(before, folder, corpus)
        assert_same_tokens(before, after, kept, corpus)


def test_a_token_before_each_text_gets_its_new_id(tmp_path):
    tokenizer = donor_tokenizer(bos=True)
    tokenizer.add_tokens(["zz"])
    before = saved(tokenizer, tmp_path)
    kept = prune_vocabulary(tmp_path, before("a bag")["input_ids"])
    after = AutoTokenizer.from_pretrained(tmp_path)
    assert [kept[id_] for id_ in after("a bag zz")["input_ids"]] == before("a bag zz")["input_ids"]
    assert after.convert_ids_to_tokens(after("a bag")["input_ids"])[0] == "<|im_start|>"
    assert after.convert_tokens_to_ids("zz") == len(after) - 1


def test_words_that_are_taken_whole_stay_whole(tmp_path):
    """Llama 3's tokenizer takes a word of the vocabulary as it is, without joins."""
    before = saved(donor_tokenizer(), tmp_path)
    written = json.loads((tmp_path / "tokenizer.json").read_text())
    written["model"]["ignore_merges"] = True
    written["model"]["vocab"]["Ġqzx"] = len(written["model"]["vocab"])
    (tmp_path / "tokenizer.json").write_text(json.dumps(written))
    before = AutoTokenizer.from_pretrained(tmp_path)
    texts = ["a qzx", "red bags qzxred"]
    assert "Ġqzx" in before.convert_ids_to_tokens(before("a qzx")["input_ids"])
    after, kept = pruned(before, tmp_path, texts)
    assert_same_tokens(before, after, kept, texts)


def test_a_vocabulary_with_byte_tokens_keeps_them(tmp_path):
    """Llama's first tokenizers write unknown characters as tokens such as <0xE2>."""
    from tokenizers import Tokenizer, decoders, models

    letters = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "r", "e", "d", "b", "re", "red", "bed", "ed"]
    vocabulary = {token: number for number, token in enumerate(letters)}
    merges = [("r", "e"), ("e", "d"), ("re", "d"), ("b", "ed")]
    model = models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True)
    tokenizer = Tokenizer(model)
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    before = saved(PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>"), tmp_path)
    after, kept = pruned(before, tmp_path, ["red", "é"])
    assert_same_tokens(before, after, kept, ["red", "é", "皮"])
    assert "bed" not in after.get_vocab()
    assert after.decode(after("bed 皮 👟")["input_ids"]) == "bed 皮 👟"


@pytest.mark.parametrize("change", ["type", "affix", "processor"])
def test_another_kind_of_tokenizer_is_refused(tmp_path, change):
    saved(donor_tokenizer(), tmp_path)
    written = json.loads((tmp_path / "tokenizer.json").read_text())
    if change == "processor":
        written["post_processor"] = {"type": "BertProcessing", "sep": ["<|im_end|>", 2], "cls": ["<|im_start|>", 1]}
    else:
        written["model"] |= {"type": "Unigram"} if change == "type" else {"end_of_word_suffix": "</w>"}
    (tmp_path / "tokenizer.json").write_text(json.dumps(written))
    messages = {
        "type": "found a Unigram tokenizer",
        "affix": "BPE tokenizer with affixes",
        "processor": "BertProcessing",
    }
    with pytest.raises(VocabularyError, match=messages[change]):
        prune_vocabulary(tmp_path, [1])


@pytest.mark.parametrize("form", ["text", "table"])
@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_the_base_computes_the_same_for_the_corpus_and_its_prompts(tmp_path, form, kind):
    donor = tiny_donor(tmp_path / "donor", kind, tie_word_embeddings=kind == "llama")
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("\n".join(CORPUS), encoding="utf-8")
    if form == "table":
        corpus = write_table(tmp_path / "products.csv", PRODUCTS)
    whole = make_text_base(donor, tmp_path / "whole", vision=VISION)
    base = make_text_base(donor, tmp_path / "base", vision=VISION, corpus=corpus)
    model = AutoModelForCausalLM.from_pretrained(donor)
    small, large = (AutoModelForImageTextToText.from_pretrained(folder) for folder in (base, whole))
    assert small.config.text_config.vocab_size == len(AutoTokenizer.from_pretrained(base))
    assert small.config.text_config.vocab_size < large.config.text_config.vocab_size - 50
    before, after = AutoTokenizer.from_pretrained(donor), AutoTokenizer.from_pretrained(base)
    products, queries = read_corpus(corpus)
    texts = [text for text in texts_of(products, queries) if text]
    assert len(texts) >= 3
    for text in texts:
        expected_ids, ids = before(text)["input_ids"], after(text)["input_ids"]
        assert after.convert_ids_to_tokens(ids) == before.convert_ids_to_tokens(expected_ids)
        with torch.no_grad():
            expected = model.model(input_ids=torch.tensor([expected_ids])).last_hidden_state
            found = small.model.language_model(input_ids=torch.tensor([ids])).last_hidden_state
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    settings = {"readout": "emb", "title_markers": True, "max_reasoning_tokens": 64}
    for options in ({}, settings):
        ours, theirs = (MoonProcessor.from_base(folder, **options) for folder in (base, whole))
        kinds = [("products", products)] + ([("queries", queries)] if queries else [])
        for name, records in kinds:
            for one, other in zip(
                ours(**{name: records})["input_ids"], theirs(**{name: records})["input_ids"], strict=True
            ):
                tokens = [side.tokenizer.convert_ids_to_tokens(ids) for side, ids in ((ours, one), (theirs, other))]
                assert tokens[0] == tokens[1]


def test_a_corpus_that_cannot_be_read_or_has_no_text_is_refused(tmp_path):
    (tmp_path / "empty.txt").write_text("\n \n")
    with pytest.raises(TableError, match="found no text"):
        read_corpus(tmp_path / "empty.txt")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    with pytest.raises(TableError, match="byte 3: found no UTF-8"):
        read_corpus(tmp_path / "latin.txt")
    with pytest.raises(TableError, match="no such file or folder"):
        read_corpus(tmp_path / "nowhere")


@pytest.mark.skipif(not QWEN3.is_file(), reason="the tokenizer of Qwen3 is not on this machine")
def test_the_tokenizer_of_qwen3_keeps_a_real_corpus(tmp_path):
    from transformers.models.qwen2.tokenization_qwen2 import Qwen2Tokenizer

    before = Qwen2Tokenizer.from_pretrained(_folder_of_qwen3(tmp_path / "whole"))
    texts = ["Red leather ankle boots, size 42", "红色真皮短靴 42码 🥾", "Küchenmesser aus Edelstahl", "<think>"]
    folder = shutil.copytree(tmp_path / "whole", tmp_path / "pruned")
    after, kept = pruned(before, folder, texts)
    assert_same_tokens(before, after, kept, texts)
    assert len(after) < 400 < 150_000 < len(before)
    assert after.decode(after("未见过的文本 🦄")["input_ids"]) == "未见过的文本 🦄"
    assert after.convert_ids_to_tokens(after("<|image_pad|><|im_end|>")["input_ids"]) == ["<|image_pad|>", "<|im_end|>"]


def _folder_of_qwen3(folder):
    folder.mkdir()
    shutil.copyfile(QWEN3, folder / "tokenizer.json")
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "Qwen2Tokenizer"}))
    return folder


def test_the_prompts_of_every_task_are_kept(tmp_path):
    base = make_text_base(tiny_donor(tmp_path / "donor"), tmp_path / "base", vision=VISION)
    (tmp_path / "corpus.txt").write_text("red")
    ids = corpus_ids(base, tmp_path / "corpus.txt")
    processor = MoonProcessor.from_base(base)
    for task in processor.instructions:
        assert set(processor(queries=[{"text": "red"}], task=task)["input_ids"][0].tolist()) <= ids
