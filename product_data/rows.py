"""Define the products of a data set, and its queries with their right answers."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from product_data.table_files import ImageSource

QUERY_TYPES = ("text", "image", "both")
PRODUCT_FORMS = ("mm", "t", "i")
EVERY_SPLIT = "all"


@dataclass(frozen=True, slots=True)
class ProductRow:
    """One product. Pictures stay encoded: a row is small and can be pickled.

    `attributes_image` and `attributes_text` are the attributes that the picture and the text show, None if unknown. The
    record that a model sees does not contain them.
    """

    product_id: str
    title: str = ""
    description: str = ""
    category: tuple[str, ...] = ()
    attributes: dict[str, tuple[str, ...]] = field(default_factory=dict)
    images: tuple[ImageSource, ...] = ()
    split: str = EVERY_SPLIT
    group: str | None = None
    core_box: tuple[float, float, float, float] | None = None
    attributes_image: dict[str, tuple[str, ...]] | None = None
    attributes_text: dict[str, tuple[str, ...]] | None = None

    @property
    def has_text(self) -> bool:
        """Whether the product has a text field that can be written into a prompt."""
        return bool(self.title or self.description or self.category or self.attributes)

    def record(self, form: str = "mm", *, without: Iterable[str] = ()) -> dict[str, Any]:
        """Return the product record for MoonProcessor.

        Args:
            form (`str`): "mm" everything, "t" the text fields only, "i" the images (and core box) only.
            without (`Iterable[str]`): record fields to leave out, such as "category".

        Raises:
            ValueError: an unknown form.
        """
        if form not in PRODUCT_FORMS:
            raise ValueError(f"form={form!r}; expected one of {', '.join(PRODUCT_FORMS)}")
        fields: dict[str, Any] = {}
        if form != "i":
            fields |= {"title": self.title, "description": self.description}
            fields |= {"category": list(self.category)}
            fields |= {"attributes": {key: list(values) for key, values in self.attributes.items()}}
        if form != "t":
            fields |= {"images": list(self.images), "core_box": list(self.core_box) if self.core_box else None}
        left_out = set(without)
        return {"id": self.product_id} | {
            name: value for name, value in fields.items() if value and name not in left_out
        }


@dataclass(frozen=True, slots=True)
class QueryRow:
    """One query and its right answers."""

    query_id: str
    type: str
    text: str = ""
    image: ImageSource | None = None
    box: tuple[float, float, float, float] | None = None
    positives: tuple[str, ...] = ()
    split: str = EVERY_SPLIT
    kind: str = ""
    derived: bool = False
    reference_product_id: str | None = None
    negatives: tuple[str, ...] = ()
    positive_categories: tuple[str, ...] = ()
    positive_weights: tuple[float, ...] = ()

    @property
    def answers(self) -> dict[str, float]:
        """Return product id → relevance weight of each known answer; 1 if the table has no weights."""
        weights = self.positive_weights or (1.0,) * len(self.positives)
        return dict(zip(self.positives, weights, strict=True))

    def record(self) -> dict[str, Any]:
        """Return the query record for MoonProcessor; type "image" leaves out the text, type "text" the image."""
        fields: dict[str, Any] = {"id": self.query_id}
        if self.type != "image" and self.text:
            fields["text"] = self.text
        if self.type != "text" and self.image is not None:
            fields["image"] = self.image
            if self.box is not None:
                fields["core_box"] = list(self.box)
        return fields
