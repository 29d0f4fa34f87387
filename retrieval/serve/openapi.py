"""Describe the search service in OpenAPI 3.1, from the fields that its requests are checked against."""

from __future__ import annotations

from typing import Any

from product_data.feeds.feed_product import AVAILABILITY
from product_data.rows import PRODUCT_FORMS
from retrieval.reasoning_options import QUERY_REASONING
from retrieval.serve.settings import ServiceSettings

_STRING, _STRINGS = {"type": "string"}, {"type": "array", "items": {"type": "string"}}
_NUMBER_OR_NULL = {"type": ["number", "null"]}


def query_schemas(settings: ServiceSettings) -> dict[str, dict[str, Any]]:
    """Return the JSON schema of each field of a search."""
    return {
        "text": {"type": "string", "maxLength": settings.max_text, "description": "words to look for"},
        "image": {"type": "string", "format": "byte", "description": "a picture in base64; in a form, a file"},
        "box": {
            "type": "array",
            "items": {"type": "number"},
            "minItems": 4,
            "maxItems": 4,
            "description": "x0, y0, x1, y1 of the product in the picture, in pixels",
        },
        "like": {"type": "string", "description": "id of a product: find products like it"},
        "weight": {
            "type": "number",
            "minimum": 0,
            "maximum": 1,
            "description": "share of the words beside a picture or product; without it the model reads both together",
        },
        "k": {"type": "integer", "minimum": 1, "default": 10, "description": "number of products"},
        "offset": {"type": "integer", "minimum": 0, "default": 0, "description": "best products to leave out"},
        "where": {"type": "string", "description": "filter, such as: price < 50 and brand = 'Acme'"},
        "forms": {
            "type": "array",
            "items": {"enum": list(PRODUCT_FORMS)},
            "description": "products' vectors to search",
        },
        "words": {"type": "boolean", "default": False, "description": "rank by the words themselves too (BM25)"},
        "reasoning": {"enum": list(QUERY_REASONING), "default": "none"},
    }


def product_schema() -> dict[str, Any]:
    """Return the JSON schema of a product."""
    properties: dict[str, Any] = dict.fromkeys(
        ("product_id", "title", "description", "brand", "currency", "url"), _STRING
    )
    properties |= {"category": _STRINGS, "attributes": {"type": "object", "additionalProperties": _STRINGS}}
    properties |= {"price": _NUMBER_OR_NULL, "availability": {"enum": list(AVAILABILITY)}, "images": _STRINGS}
    return {"type": "object", "properties": properties, "required": ["product_id"]}


def explanation_fields() -> dict[str, Any]:
    """Return the JSON schema of each field of an explanation, see `retrieval.explanation.explain.MatchExplanation`."""
    number, objects = {"type": "number"}, {"type": "array", "items": {"type": "object"}}
    return {
        "form": _STRING,
        **dict.fromkeys(("cosine", "different", "residual", "common"), number),
        **dict.fromkeys(("shared", "different_pairs", "heat_maps"), objects),
        "share_explained": _NUMBER_OR_NULL,
        "unexplained": {"type": "object", "properties": {"query": number, "product": number}},
    }


def document(settings: ServiceSettings) -> dict[str, Any]:
    """Return the OpenAPI document of the service.

    Args:
        settings: the limits of the service.
    """
    fields = query_schemas(settings)
    search = {"type": "object", "properties": fields, "additionalProperties": False}
    embed_fields = {name: fields[name] for name in ("text", "image", "box", "weight")}
    embed = {"type": "object", "properties": embed_fields, "additionalProperties": False}
    asked = {name: fields[name] for name in ("text", "image", "box", "like", "weight")} | {"product": _STRING}
    explain = {"type": "object", "properties": asked, "required": ["product"], "additionalProperties": False}
    product = product_schema()
    hit_fields = {"rank": {"type": "integer"}, "score": {"type": "number"}, "cosine": _NUMBER_OR_NULL, "form": _STRING}
    hit = {"type": "object", "properties": hit_fields | product["properties"], "required": ["rank", "product_id"]}
    written = product | {"properties": product["properties"] | {"pictures": _STRINGS}, "additionalProperties": False}
    answer_fields = {
        "query_form": _STRING,
        "offset": {"type": "integer"},
        "reasoned": {"type": "boolean"},
        "reasoning": _STRINGS,
        "margin": _NUMBER_OR_NULL,
        "store": _STRING,
        "milliseconds": {"type": "object", "additionalProperties": {"type": "number"}},
        "hits": {"type": "array", "items": hit},
    }
    vectors = {"type": "array", "items": {"type": "array", "items": {"type": "number"}}}
    vector_fields = {
        "query_form": _STRING,
        "fingerprint": _STRING,
        "dimension": {"type": "integer"},
        "vectors": vectors,
    }
    writes: dict[str, Any] = {"security": [{"key": []}]}
    ids = {"type": "object", "properties": {"product_ids": _STRINGS}, "required": ["product_ids"]}
    many = {"type": "object", "properties": {"products": {"type": "array", "items": written}}, "required": ["products"]}
    number = {"type": "object", "additionalProperties": {"type": "integer"}}
    paths = {
        "/search": {"post": _operation("Search products", _object(answer_fields), search, form=True)},
        "/embed": {"post": _operation("Return the vector of a query", _object(vector_fields), embed, form=True)},
        "/region": {
            "post": _operation(
                "Detect the product in a picture",
                _object(
                    {"box": {"type": ["array", "null"], "items": {"type": "number"}, "minItems": 4, "maxItems": 4}}
                ),
                _object({"image": fields["image"]}),
                form=True,
            )
        },
        "/explain": {
            "post": _operation("Say which values carry a match", _object(explanation_fields()), explain, form=True)
        },
        "/": {"get": _operation("Return the page", _STRING, kind="text/html")},
        "/pictures/{number}/{product_id}": {
            "get": _operation(
                "Return a picture of a product, made small",
                {"type": "string", "format": "binary"},
                kind="image/jpeg",
                parameters=[_path("number") | {"schema": {"type": "integer", "minimum": 0}}, _path("product_id")],
            )
        },
        "/products": {
            "put": _operation("Add or replace products", number, many) | writes,
            "delete": _operation("Remove products", number, ids) | writes,
        },
        "/products/{product_id}": {"get": _operation("Return a product", product, parameters=[_path("product_id")])},
        "/facets": {
            "get": _operation(
                "Count products by category, brand and availability",
                {"type": "object", "additionalProperties": number},
                parameters=[{"name": "where", "in": "query", "schema": fields["where"]}],
            )
        },
        "/health": {"get": _operation("Say whether the service works", {"type": "object"})},
    }
    return {
        "openapi": "3.1.0",
        "info": {"title": "Moon product search", "version": "1"},
        "paths": paths,
        "components": {"securitySchemes": {"key": {"type": "http", "scheme": "bearer"}}},
    }


def _object(properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties)}


def _path(name: str) -> dict[str, Any]:
    return {"name": name, "in": "path", "required": True, "schema": _STRING}


def _operation(
    summary: str,
    answer: dict[str, Any],
    body: dict[str, Any] | None = None,
    *,
    form: bool = False,
    kind: str = "application/json",
    parameters: list[dict[str, Any]] | None = None,
) -> dict[str, Any]:
    """Return one operation; its errors are objects with "error"."""
    kinds = ("application/json", "multipart/form-data") if form else ("application/json",)
    error = {"description": "refused", "content": {"application/json": {"schema": _object({"error": _STRING})}}}
    found: dict[str, Any] = {
        "summary": summary,
        "responses": {
            "200": {"description": "done", "content": {kind: {"schema": answer}}},
            "4XX": error,
        },
    }
    if body is not None:
        found["requestBody"] = {"required": True, "content": {name: {"schema": body} for name in kinds}}
    return found | ({"parameters": parameters} if parameters else {})
