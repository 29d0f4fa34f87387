"""Choose who edits pictures: the embedded editor, or a callable of the user.

MOON2.0 (arXiv 2511.12449) expands pictures in two steps with a generative editor: a clean main picture, and from it
n_c variants of ground and view. The instructions below are ours.
"""

import hashlib
import inspect
from collections.abc import Callable
from importlib import import_module
from typing import Any

import numpy as np
from PIL import Image

from product_data.co_augmentation.cutting import CutOutError, cut_out
from product_data.co_augmentation.editor import EditedPicture, EmbeddedEditor
from product_data.core_boxes.saliency import SaliencyDetector
from product_data.errors import OptionError
from product_data.rows import ProductRow

EMBEDDED = "embedded"
_KEEP = "Keep its shape, colour, pattern, text and logo"
CLEAN_INSTRUCTION = f'Show only the product "{{title}}", whole and alone, on a plain white ground. {_KEEP}.'
SCENE_INSTRUCTION = f'Show the same product "{{title}}" {{ground}}, {{view}}. {_KEEP}, and add no other product.'
GROUNDS = ("on a wooden table", "in a bright living room", "on a stone floor outdoors", "in front of a coloured wall")
VIEWS = ("seen from the front", "seen from the left", "seen from the right", "seen from slightly above")
PictureCallable = Callable[[Image.Image, str], Image.Image]
"""(picture, instruction) → the edited picture, RGB, of any size."""


class EditorError(ValueError):
    """Raised if an editor of the user fails or returns something else than a picture; names the product."""

    exit_status = 2


class Editor:
    """Edit the picture of a product in two steps. The embedded editor.

    Args:
        saliency: a network for grounds that are not plain. Default: none.

    Relations: `CallableEditor` for an editor of the user.
    """

    name = EMBEDDED

    def __init__(self, saliency: SaliencyDetector | None = None) -> None:
        self.saliency = saliency

    @property
    def settings(self) -> dict[str, Any]:
        """Everything that a picture depends on, besides the product, its number and the seed."""
        return {"editor": self.name, "saliency": self.saliency.settings["sha256"] if self.saliency else None}

    def edit(
        self, image: Image.Image, row: ProductRow, views: int, seeds: tuple[int, ...], other: Image.Image | None
    ) -> list[EditedPicture]:
        """Return the clean picture and `views` scenes.

        Args:
            image: RGB picture of the product.
            row: the product.
            views: number of scenes, n_c.
            seeds: decide all random choices.
            other: the picture of another product, for one of the grounds.

        Raises:
            CutOutError: the product cannot be separated from its ground.
        """
        editor = EmbeddedEditor(image, row, self.saliency)
        made = [editor.clean()]
        first = int(np.random.default_rng(seeds).integers(4))
        for number in range(views):
            made.append(editor.scene(first + number, np.random.default_rng((*seeds, number)), other))
        return made


class CallableEditor(Editor):
    """Edit pictures with a function of the user: once for the clean picture, and once for each scene from the clean one.

    The box of the product in its pictures is that of the saliency mask or of what stands out from a plain ground, if
    there is one.

    Args:
        name: package.module:function.
        saliency: network that finds the product in edited pictures. Default: none.

    Raises:
        OptionError: the function does not exist or does not take a picture and an instruction.
    """

    def __init__(self, name: str, saliency: SaliencyDetector | None = None) -> None:
        super().__init__(saliency)
        self.name = name
        self.function: PictureCallable = load_callable("--editor", name, "(picture, instruction) → picture", 2)

    @property
    def settings(self) -> dict[str, Any]:
        """See `Editor.settings`; with a digest of the function's source."""
        return super().settings | {"editor_source": source_digest(self.function)}

    def edit(
        self, image: Image.Image, row: ProductRow, views: int, seeds: tuple[int, ...], other: Image.Image | None
    ) -> list[EditedPicture]:
        """Return the clean picture and `views` scenes; see `Editor.edit`.

        Raises:
            EditorError: the function fails, or does not return a picture.
        """
        title = row.title or (row.category[-1] if row.category else "product")
        clean = self._edited(image, CLEAN_INSTRUCTION.format(title=title), row)
        made = [self._boxed(clean, CLEAN_INSTRUCTION)]
        rng = np.random.default_rng(seeds)
        grounds, turns = rng.permutation(len(GROUNDS)), rng.permutation(len(VIEWS))
        for number in range(views):
            ground, view = GROUNDS[grounds[number % len(GROUNDS)]], VIEWS[turns[number % len(VIEWS)]]
            instruction = SCENE_INSTRUCTION.format(title=title, ground=ground, view=view)
            made.append(self._boxed(self._edited(clean, instruction, row), f"{ground}, {view}"))
        return made

    def _edited(self, image: Image.Image, instruction: str, row: ProductRow) -> Image.Image:
        try:
            edited = self.function(image, instruction)
        except Exception as error:
            raise EditorError(
                f"--editor {self.name}: product {row.product_id!r}: the function raised {type(error).__name__}: {error}"
            ) from error
        if not isinstance(edited, Image.Image):
            raise EditorError(
                f"--editor {self.name}: product {row.product_id!r}: found {type(edited).__name__}; expected a PIL image"
            )
        return edited.convert("RGB")

    def _boxed(self, image: Image.Image, words: str) -> EditedPicture:
        try:
            cut = cut_out(image, None, self.saliency)
        except CutOutError:
            return EditedPicture(image, None, f"{self.name}: {words}")
        scale = image.width / cut.picture.width
        x0, y0, x1, y1 = (side * scale for side in cut.box)
        return EditedPicture(image, (x0, y0, x1, y1), f"{self.name}: {words}")


def open_editor(name: str, saliency: SaliencyDetector | None = None) -> Editor:
    """Return the editor of a name: "embedded", or package.module:function.

    Raises:
        OptionError: see `CallableEditor`.
    """
    return Editor(saliency) if name == EMBEDDED else CallableEditor(name, saliency)


def load_callable(option: str, name: str, signature: str, arguments: int) -> Callable[..., Any]:
    """Import a function of the user.

    Args:
        option: the option, for messages.
        name: package.module:function.
        signature: what the function takes and returns, for messages.
        arguments: the number of positional arguments that it must take.

    Raises:
        OptionError: no such module or function, or a function that does not take so many arguments.
    """
    module, colon, function = name.partition(":")
    expected = f"expected package.module:function, a function {signature}"
    if not colon or not module or not function:
        raise OptionError(f"{option}: found {name!r}; {expected}")
    try:
        found = getattr(import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise OptionError(f"{option}: found {name!r}, which cannot be imported ({error}); {expected}") from error
    if not callable(found):
        raise OptionError(f"{option}: found {name!r}, which is not callable; {expected}")
    try:
        inspect.signature(found).bind(*range(arguments))
    except TypeError as error:
        raise OptionError(f"{option}: found {name!r}, which does not take them ({error}); {expected}") from error
    except ValueError:
        return found  # a function of C has no signature
    return found


def source_digest(function: Callable[..., Any]) -> str:
    """Return 16 hex digits of a function's source file, "" if it has none."""
    try:
        return hashlib.sha256(inspect.getsource(inspect.getmodule(function) or function).encode()).hexdigest()[:16]
    except (OSError, TypeError):
        return ""
