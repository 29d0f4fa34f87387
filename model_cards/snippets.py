"""Write the code on a card that loads its checkpoint. Each block runs on its own."""

from __future__ import annotations

import json

from model_cards.facts import Card

_RECORDS = """\
products = [
    {"title": "Noru zip-up hoodie", "attributes": {"colour": "green"}},
    {"title": "Fjell glass vase"},
]
queries = [{"text": "green hoodie"}]"""
_VECTORS = f"""\
{_RECORDS}
with torch.inference_mode():
    product_vectors = model(**processor(products=products)).embeddings
    query_vectors = model(**processor(queries=queries)).embeddings
print(query_vectors @ product_vectors.T)"""
_PICTURES = (
    'A product or a query may also have pictures: `{"title": …, "images": ["hoodie.jpg"]}`, `{"image": "photo.jpg"}`.'
)


def snippets(card: Card) -> list[tuple[str, str]]:
    """Return the loading examples of a card, in order: a sentence and Python code each.

    Args:
        card: the facts; the code loads `source`.
    """
    if card.kind == "adapter":
        return [("With peft, on top of the weights that it was trained on:", _adapter(card))]
    if card.kind == "dual_tower":
        return [
            (
                "The code of this baseline is not in the checkpoint, but in our package.",
                _with_package(card, "evaluation.baselines"),
            )
        ]
    if not card.has_code:
        sentence = f"The code is not in this folder, but in our package, whose import is needed first. {_PICTURES}"
        return [
            (sentence, _with_package(card, "modeling_moon")),
            ("With sentence-transformers:", _sentence_transformers(card, "\nimport modeling_moon\n", "")),
        ]
    found = [
        (f"With transformers; the code comes with the checkpoint. {_PICTURES}", _transformers(card)),
        (
            "In an environment with our package, whose import replaces `trust_remote_code`:",
            _with_package(card, "modeling_moon"),
        ),
        ("With sentence-transformers:", _sentence_transformers(card)),
    ]
    if card.settings.get("max_reasoning_tokens"):
        found.append(("To write attributes before embedding:", _reasoning(card)))
    return found


def _loading(card: Card, trusted: str) -> str:
    return f"""\
checkpoint = {json.dumps(card.source)}  # this folder, or its id on the Hub
model = AutoModel.from_pretrained(checkpoint{trusted}).eval()
processor = AutoProcessor.from_pretrained(checkpoint{trusted})"""


def _transformers(card: Card) -> str:
    return f"""\
import torch
from transformers import AutoModel, AutoProcessor

{_loading(card, ", trust_remote_code=True")}
{_VECTORS}"""


def _with_package(card: Card, package: str) -> str:
    return f"""\
import torch
from transformers import AutoModel, AutoProcessor

import {package}
import processing_moon

{_loading(card, "")}
{_VECTORS}"""


def _sentence_transformers(card: Card, imports: str = "", trusted: str = ", trust_remote_code=True") -> str:
    return f"""\
from sentence_transformers import SentenceTransformer
{imports}
encoder = SentenceTransformer({json.dumps(card.source)}{trusted})
{_RECORDS}
query_vectors = encoder.encode_query(queries)
product_vectors = encoder.encode_document(products)
print(encoder.similarity(query_vectors, product_vectors))"""


def _reasoning(card: Card) -> str:
    return f"""\
from transformers import AutoModel, AutoProcessor

{_loading(card, ", trust_remote_code=True")}
output = model.embed([{{"title": "Noru zip-up hoodie"}}], reasoning="generate", processor=processor)
print(output.embeddings.shape, output.reasoning[0].attributes)"""


def _adapter(card: Card) -> str:
    return f"""\
import torch
from peft import PeftModel
from transformers import AutoModel, AutoProcessor

base = {json.dumps(card.adapter_base)}  # the checkpoint that the adapter was trained on
processor = AutoProcessor.from_pretrained(base, trust_remote_code=True)
model = AutoModel.from_pretrained(base, trust_remote_code=True)
model = PeftModel.from_pretrained(model, {json.dumps(card.source)}).eval()
{_VECTORS}"""
