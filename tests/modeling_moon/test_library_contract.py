"""What transformers asks of every model: outputs, masks, caches, compilation, embeddings, files. Kept, or refused clearly."""

import inspect

import pytest
import torch
from pictures import noise
from transformers import CompileConfig, DynamicCache, StaticCache

from modeling_moon import MoonForConditionalGeneration, MoonModel
from processing_moon import MoonProcessor

VARIANTS = [
    pytest.param((backbone, preset), id=f"{backbone}-{preset}")
    for backbone in ("qwen3_vl", "qwen2_5_vl")
    for preset in ("moon1", "moon2", "moon3")
]
VISION = "<|vision_start|><|image_pad|><|vision_end|>"
TEXTS = [
    f"{VISION}shoes <|title_start|>red shoes<|title_end|> <|attribute_start|>colour: red",
    "<|category_start|>Home<|category_end|> mug",
]
WORDS = ["red shoes <|attribute_start|>colour: red", "a blue mug"]


class Variant:
    """One preset on one backbone, with batches of words alone and of pictures and words."""

    def __init__(self, folder):
        self.folder = folder
        self.processor = MoonProcessor.from_pretrained(folder)
        self.writer = self.load()
        self.encoder = self.writer.model
        self.config = self.writer.config
        options = {"padding": True, "padding_side": "left", "return_tensors": "pt"}
        self.words = dict(self.processor(text=WORDS, **options))
        self.seen = dict(self.processor(text=TEXTS, images=[[noise(64, 64)], []], **options))

    def load(self, model=MoonForConditionalGeneration, **options):
        return model.from_pretrained(self.folder, **options).eval()

    def generate(self, batch, **options):
        return self.writer.generate(**batch, max_new_tokens=6, min_new_tokens=6, do_sample=False, **options)


@pytest.fixture(scope="module", params=VARIANTS)
def variant(request, tiny_moon):
    backbone, preset = request.param
    return Variant(tiny_moon(backbone, preset=preset, trained=True))


# ---------------------------------------------------------------------------------------------------------------------
# Outputs
# ---------------------------------------------------------------------------------------------------------------------
def same(one, other):
    """Whether two outputs hold the same tensors in the same order, whatever they are wrapped in."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    one, other = (value.to_tuple() if hasattr(value, "to_tuple") else value for value in (one, other))
    if isinstance(one, tuple):
        return len(one) == len(other) and all(same(*pair) for pair in zip(one, other, strict=True))
    return type(one) is type(other)


@torch.no_grad()
def test_a_tuple_is_returned_where_the_argument_or_the_configuration_says_so(variant):
    for model in (variant.encoder, variant.writer):
        whole = model(**variant.seen)
        assert same(model(**variant.seen, return_dict=False), whole)
        assert isinstance(model(**variant.seen, return_dict=False), tuple)
        variant.config.return_dict = False
        try:
            assert isinstance(model(**variant.seen), tuple)
            assert same(model(**variant.seen), whole)
            assert same(model(**variant.seen, return_dict=True), whole)
            assert variant.generate(variant.seen).shape[0] == 2
            reasoning = "generate" if variant.config.max_reasoning_tokens else "none"
            vectors = variant.encoder.embed([{"title": "mug"}], processor=variant.processor, reasoning=reasoning)
            assert vectors.embeddings.shape == (1, 32)
        finally:
            variant.config.return_dict = True


@torch.no_grad()
def test_states_and_attentions_of_layers_are_returned_where_the_argument_or_the_configuration_says_so(variant):
    batch, length = variant.seen, variant.seen["input_ids"].shape[1]
    heads, layers = variant.config.text_config.num_attention_heads, variant.config.num_hidden_layers
    for model_class in (MoonModel, MoonForConditionalGeneration):
        model = variant.load(model_class, attn_implementation="eager")
        assert (model(**batch).hidden_states, model(**batch).attentions) == (None, None)
        asked = model(**batch, output_hidden_states=True, output_attentions=True)
        assert [tuple(state.shape) for state in asked.hidden_states] == [(2, length, 64)] * (layers + 1)
        assert [tuple(state.shape) for state in asked.attentions] == [(2, heads, length, length)] * layers
        model.config.output_hidden_states = model.config.output_attentions = True
        said = model(**batch)
        assert same(said.hidden_states, asked.hidden_states)
        assert same(said.attentions, asked.attentions)
        unsaid = model(**batch, output_hidden_states=False, output_attentions=False)
        assert (unsaid.hidden_states, unsaid.attentions) == (None, None)


def test_attentions_of_a_kernel_that_computes_none_are_refused(variant):
    for model in (variant.encoder, variant.writer):
        with pytest.raises(
            ValueError, match="attention 'sdpa' does not return them; expected attn_implementation='eager'"
        ):
            model(**variant.words, output_attentions=True)


def test_outputs_and_inputs_of_other_models_are_refused_with_what_stands_in_their_place(variant):
    for model in (variant.encoder, variant.writer):
        with pytest.raises(ValueError, match="does not read output_router_logits; expected output_router_stats=True"):
            model(**variant.words, output_router_logits=True)
        with pytest.raises(ValueError, match="does not read pixel_values_videos; expected pixel_values"):
            model(**variant.words, pixel_values_videos=torch.zeros(4, 4))
        with torch.no_grad():
            model(**variant.words, output_router_logits=False, pixel_values_videos=None)


def test_a_forward_pass_starts_with_input_ids(variant):
    for model in (variant.encoder, variant.writer):
        assert next(iter(inspect.signature(model.forward).parameters)) == model.main_input_name == "input_ids"


@torch.no_grad()
def test_text_that_holds_nothing_to_read_a_vector_from_gives_hidden_states(variant):
    """As pipelines and trainers of other libraries call an encoder, with any text and no word about vectors."""
    output = variant.encoder(**variant.words)
    assert output[0].shape == (*variant.words["input_ids"].shape, 64)
    assert (output.embeddings is None) == (variant.config.readout == "emb")
    by_embeddings = {
        "inputs_embeds": variant.encoder.get_input_embeddings()(variant.words["input_ids"]),
        "attention_mask": variant.words["attention_mask"],
        "aspect_ids": variant.encoder.find_aspect_ids(variant.words["input_ids"]),
    }
    torch.testing.assert_close(variant.encoder(**by_embeddings)[0], output[0])
    if variant.config.readout == "emb":
        with pytest.raises(ValueError, match="have no <emb> token to read a vector from"):
            variant.encoder(**variant.words, output_embeddings=True)
        with pytest.raises(ValueError, match="needs input_ids"):
            variant.encoder(**by_embeddings, output_embeddings=True)


def test_every_parameter_that_writing_uses_gets_a_gradient(variant):
    model = variant.load().train()
    model(**variant.seen, labels=variant.seen["input_ids"]).loss.backward()
    without = {name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0}
    # Words are written from hidden states: what makes a vector of them, and what weighs objectives, is not used.
    vectors = ("model.fusion.", "model.projection.", ".preference")
    assert {name for name in without if not any(part in name for part in vectors)} <= {
        name
        for name in without
        if name.endswith("k_proj.bias")  # a constant for every key cancels in the softmax
    }


def test_gradients_of_the_states_of_layers_are_kept(variant):
    output = variant.load(MoonModel)(**variant.seen, output_hidden_states=True)
    for state in output.hidden_states[:-1]:
        state.retain_grad()
    output.last_hidden_state[0].sum().backward()
    assert all(state.grad is not None for state in output.hidden_states[:-1])


# ---------------------------------------------------------------------------------------------------------------------
# Masks of pairs of tokens
# ---------------------------------------------------------------------------------------------------------------------
def causal(mask_BT):
    length = mask_BT.shape[1]
    return torch.ones(length, length, dtype=torch.bool).tril()[None, None] & mask_BT[:, None, None].bool()


@torch.no_grad()
@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
def test_a_mask_of_pairs_of_tokens_equals_the_mask_of_tokens(variant, kernel):
    model = variant.load(attn_implementation=kernel)
    mask_BT = variant.words["attention_mask"]
    expected = model(**variant.words).logits[mask_BT.bool()]
    position_ids = (mask_BT.cumsum(dim=1) - 1).clamp(min=0)[None].expand(4, -1, -1)
    allowed = causal(mask_BT)
    scores = torch.zeros(allowed.shape).masked_fill(~allowed, torch.finfo(torch.float32).min)
    for pairs in (allowed, scores) if kernel == "sdpa" else (scores,):
        found = model(**variant.words | {"attention_mask": pairs}, position_ids=position_ids).logits[mask_BT.bool()]
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_a_mask_of_pairs_lets_two_texts_follow_one_beginning(variant):
    """Two endings share one row and one beginning, each blind to the other."""
    start, one, two = ([40, 41, 42], [50, 51], [60, 61])
    apart = [variant.writer(input_ids=torch.tensor([start + end])).logits[0, 3:] for end in (one, two)]
    allowed = torch.ones(7, 7, dtype=torch.bool).tril()
    allowed[5:, 3:5] = False
    positions = torch.tensor([0, 1, 2, 3, 4, 3, 4])[None, None].expand(4, 1, -1)
    together = variant.writer(
        input_ids=torch.tensor([start + one + two]), attention_mask=allowed[None, None], position_ids=positions
    ).logits[0, 3:]
    torch.testing.assert_close(together, torch.cat(apart), rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_a_mask_of_pairs_gives_states_and_refuses_vectors(variant):
    for batch in (variant.words, variant.seen):
        pairs = batch | {"attention_mask": causal(batch["attention_mask"])}
        assert variant.encoder(**pairs).embeddings is None
        with pytest.raises(ValueError, match=r"found a mask of token pairs; expected a mask \(B, T\)"):
            variant.encoder(**pairs, output_embeddings=True)


# ---------------------------------------------------------------------------------------------------------------------
# Attention and experts
# ---------------------------------------------------------------------------------------------------------------------
def test_attention_that_moon_has_not_is_refused_by_its_name(variant):
    for kernel, message in (("flex_attention", "flex_attention"), ("linear", "linear")):
        with pytest.raises(ValueError, match=message):
            variant.load(attn_implementation=kernel)


# ---------------------------------------------------------------------------------------------------------------------
# Generation
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", ["words", "seen"])
@pytest.mark.parametrize("strategy", [{}, {"num_beams": 2}], ids=["greedy", "beams"])
def test_a_static_cache_writes_what_a_growing_one_writes(variant, batch, strategy):
    batch = getattr(variant, batch)
    expected = variant.generate(batch, **strategy)
    assert torch.equal(variant.generate(batch, cache_implementation="static", **strategy), expected)


def test_decoding_steps_compile_to_whole_graphs_with_a_static_cache(variant):
    assert variant.writer._can_compile_fullgraph
    torch.compiler.reset()
    whole = CompileConfig(backend="eager", fullgraph=True, mode=None, dynamic=False)
    whole._compile_all_devices = True
    graphs = torch._dynamo.utils.counters["stats"]
    before = graphs["unique_graphs"]
    found = variant.generate(variant.seen, cache_implementation="static", compile_config=whole)
    assert graphs["unique_graphs"] == before + 1  # of five steps
    assert torch.equal(found, variant.generate(variant.seen))


@torch.no_grad()
def test_a_guided_token_of_a_compiled_step_uses_its_expert(variant):
    """The step after an open attribute marker, which has an aspect, gives the logits of the step that is not compiled."""
    ids = variant.words["input_ids"][:1]
    length = ids.shape[1]
    logits = []
    for compiled in (False, True):
        cache = StaticCache(config=variant.config.text_config, max_cache_len=length)
        variant.writer(input_ids=ids[:, :-1], past_key_values=cache, use_cache=True)
        step = torch.compile(variant.writer.forward, backend="eager", fullgraph=True) if compiled else variant.writer
        aspects = variant.encoder.find_aspect_ids(ids)
        logits.append(
            step(
                input_ids=ids[:, -1:],
                aspect_ids=None if aspects is None else aspects[:, -1:],
                position_ids=torch.full((4, 1, 1), length - 1),
                past_key_values=cache,
                use_cache=True,
            ).logits
        )
        if aspects is not None:
            assert aspects[0, -1] == 2
    torch.testing.assert_close(*logits, rtol=1e-5, atol=1e-5)


def test_looking_ahead_in_the_prompt_or_by_an_assistant_writes_the_same(variant):
    alone = {name: value[:1] for name, value in variant.words.items()}
    expected = variant.generate(alone)
    assert torch.equal(variant.generate(alone, prompt_lookup_num_tokens=2), expected)
    assert torch.equal(variant.generate(alone, assistant_model=variant.load()), expected)


def test_a_prompt_is_read_in_parts_or_refused_where_a_part_does_not_tell_enough(variant):
    alone = {name: value[:1] for name, value in variant.words.items()}
    if variant.config.reads_aspects:  # a later part does not hold the markers of an earlier one
        with pytest.raises(
            ValueError, match="read markers from the whole text: found 3 of 6 tokens; expected input_ids"
        ):
            variant.generate(alone, prefill_chunk_size=3)
    else:
        assert torch.equal(variant.generate(alone, prefill_chunk_size=3), variant.generate(alone))
    with pytest.raises(ValueError, match="Chunked prefill cannot split the raw multimodal inputs"):
        variant.generate(variant.seen, prefill_chunk_size=3)


def test_new_tokens_beside_a_cache_are_enough_unless_markers_stand_in_it(variant):
    alone = {name: value[:1] for name, value in variant.words.items()}
    ids, mask = alone["input_ids"], alone["attention_mask"]
    cache = DynamicCache(config=variant.config.text_config)
    with torch.no_grad():
        variant.writer(input_ids=ids[:, :-1], past_key_values=cache, use_cache=True)
    rest = {"input_ids": ids[:, -1:], "attention_mask": mask, "past_key_values": cache}
    if variant.config.reads_aspects:
        with pytest.raises(ValueError, match="read markers from the whole text: found 1 of"):
            variant.generate(rest)
    else:
        assert torch.equal(variant.generate(rest)[:, 1:], variant.generate(alone)[:, ids.shape[1] :])


@pytest.mark.parametrize("cache_class", [DynamicCache, StaticCache])
def test_writing_goes_on_from_what_was_kept(variant, cache_class):
    room = {"max_cache_len": 64} if cache_class is StaticCache else {}
    cache = cache_class(config=variant.config.text_config, **room)
    options = {"do_sample": False, "return_dict_in_generate": True, "output_logits": True}
    straight = variant.writer.generate(**variant.seen, **options, max_new_tokens=6, min_new_tokens=6)
    options |= {"max_new_tokens": 3, "min_new_tokens": 3}
    first = variant.writer.generate(**variant.seen, **options, past_key_values=cache)
    mask_BT = torch.cat([variant.seen["attention_mask"], torch.ones(2, 3, dtype=torch.long)], dim=1)
    second = variant.writer.generate(
        input_ids=first.sequences, attention_mask=mask_BT, past_key_values=first.past_key_values, **options
    )
    assert torch.equal(second.sequences, straight.sequences)
    for found, expected in zip(first.logits + second.logits, straight.logits, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_a_generation_tells_of_scores_states_and_attentions(variant):
    writer = variant.load(attn_implementation="eager")
    told = writer.generate(
        **variant.seen,
        max_new_tokens=3,
        min_new_tokens=3,
        do_sample=False,
        return_dict_in_generate=True,
        output_scores=True,
        output_logits=True,
        output_hidden_states=True,
        output_attentions=True,
    )
    length, layers = variant.seen["input_ids"].shape[1], variant.config.num_hidden_layers
    assert [tuple(scores.shape) for scores in told.scores] == [(2, variant.config.vocab_size)] * 3
    assert [states[-1].shape[1] for states in told.hidden_states] == [length, 1, 1]
    assert {len(states) for states in told.hidden_states} == {layers + 1}
    assert [weights[0].shape[-1] for weights in told.attentions] == [length, length + 1, length + 2]
    assert told.past_key_values.get_seq_length() == length + 2


@torch.no_grad()
def test_some_logits_are_the_same_as_those_of_all(variant):
    every = variant.writer(**variant.seen).logits
    torch.testing.assert_close(variant.writer(**variant.seen, logits_to_keep=1).logits, every[:, -1:])
    chosen = torch.tensor([2, 4])
    torch.testing.assert_close(variant.writer(**variant.seen, logits_to_keep=chosen).logits, every[:, chosen])


def test_the_configuration_decides_about_a_cache_where_no_vector_is_wanted(variant):
    model = variant.load()
    assert model(**variant.words).past_key_values is not None
    model.config.use_cache = False  # as trainers set it
    assert model(**variant.words).past_key_values is None
    assert model(**variant.words, use_cache=True).past_key_values is not None
    assert torch.equal(
        model.generate(**variant.words, max_new_tokens=6, min_new_tokens=6), variant.generate(variant.words)
    )


# ---------------------------------------------------------------------------------------------------------------------
# Embeddings and files
# ---------------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("tied", [True, False])
def test_resized_embeddings_keep_old_rows_and_are_loaded_again(tiny_moon, tmp_path, tied):
    for backbone in ("qwen3_vl", "qwen2_5_vl"):
        folder = tiny_moon(backbone, preset="moon3", tie_word_embeddings=tied)
        model = MoonForConditionalGeneration.from_pretrained(folder).eval()
        before, head = model.get_input_embeddings().weight.clone(), model.lm_head.weight.clone()
        rows = len(before)
        for size in (rows + 9, rows + 3):
            model.resize_token_embeddings(size)
            assert model.config.vocab_size == model.config.text_config.vocab_size == size
            assert model.get_input_embeddings().weight.shape == model.lm_head.weight.shape == (size, 64)
            assert torch.equal(model.get_input_embeddings().weight[:rows], before)
            assert torch.equal(model.lm_head.weight[:rows], head)
        assert (model.lm_head.weight is model.get_input_embeddings().weight) == tied
        ids = torch.tensor([[5, rows + 2]])
        assert model(input_ids=ids, labels=ids).logits.shape == (1, 2, rows + 3)
        model.save_pretrained(tmp_path / backbone)
        for again in (
            MoonForConditionalGeneration.from_pretrained(tmp_path / backbone),
            MoonForConditionalGeneration.from_pretrained(tmp_path / backbone, tie_word_embeddings=tied),
        ):
            torch.testing.assert_close(again.eval()(input_ids=ids).logits, model(input_ids=ids).logits)


def test_embeddings_are_untied_on_loading_and_stay_so(tiny_moon, tmp_path):
    for backbone in ("qwen3_vl", "qwen2_5_vl"):
        folder = tiny_moon(backbone, preset="moon1")
        model, loading = MoonForConditionalGeneration.from_pretrained(
            folder, tie_word_embeddings=False, output_loading_info=True
        )
        assert set(loading["missing_keys"]) == {"lm_head.weight"}  # which the library reports as freshly made
        assert model.lm_head.weight is not model.get_input_embeddings().weight
        model.lm_head.weight.data.fill_(0.5)
        model.save_pretrained(tmp_path / backbone)
        again = MoonForConditionalGeneration.from_pretrained(tmp_path / backbone)
        assert not again.config.tie_word_embeddings
        assert torch.equal(again.lm_head.weight, model.lm_head.weight)


def test_the_input_embeddings_are_replaced(variant):
    for model in (variant.load(), variant.load(MoonModel)):
        fresh = torch.nn.Embedding(variant.config.vocab_size, 64)
        model.set_input_embeddings(fresh)
        assert model.get_input_embeddings() is fresh
    assert variant.writer.get_output_embeddings() is variant.writer.lm_head


def test_a_checkpoint_in_many_parts_loads_equal(variant, tmp_path):
    variant.writer.save_pretrained(tmp_path, max_shard_size="100KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    for model, own in ((MoonForConditionalGeneration, variant.writer), (MoonModel, variant.encoder)):
        again = model.from_pretrained(tmp_path)
        for (name, one), other in zip(again.named_parameters(), own.parameters(), strict=True):
            assert torch.equal(one, other), name


def test_a_model_without_memory_for_its_weights_has_every_parameter(variant):
    with torch.device("meta"):
        model = MoonForConditionalGeneration(variant.config)
    assert {name: p.shape for name, p in model.named_parameters()} == {
        name: p.shape for name, p in variant.writer.named_parameters()
    }
    assert {p.device.type for p in model.parameters()} == {"meta"}


def test_weights_of_another_size_are_made_fresh_where_that_is_allowed(variant):
    rows = variant.config.vocab_size + 7
    with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
        variant.load(MoonModel, vocab_size=rows)
    model = variant.load(MoonModel, vocab_size=rows, ignore_mismatched_sizes=True)
    weight = model.get_input_embeddings().weight
    assert weight.shape[0] == rows
    assert 0.01 < weight.std() < 0.03
