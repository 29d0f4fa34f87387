"""Cut the product out of its picture, with soft edges and without the colour of the old ground.

Our design (precedent: the cut-and-paste synthesis of Dwibedi et al., arXiv 1708.01642, whose soft edges keep a model
from learning the seams). Three ways, the first that works:

1. "plain ground": the ground is modelled as a quadratic surface of colour over the picture, fitted to its borders; what has
   that colour (or a shadow of it) and is connected to the border without crossing an edge is ground.
2. "saliency": the mask of a saliency network, if one is given.
3. "core box": the core box with faded borders.

Shape suffixes: H height, W width, N pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image
from scipy import ndimage

from processing_moon.product_moon import Box, clamp_box
from product_data.core_boxes.saliency import SaliencyDetector, box_of_mask

MAX_SIDE = 640
"""The longer side of pictures that are edited, in pixels; larger ones are reduced first."""
_WORKING_SIDE = 320  # of the mask
_BORDER = 0.03  # width of the border that shows the ground, as a share of the side
_LEAST_PLAIN = 0.55  # share of the border that must fit the surface; the product may touch the rest
_MOST_NOISE = 9.0  # deviation of the ground from the surface, in levels of 255
_SHADOW = (0.55, 1.04)  # brightness of a shadow, as a share of the ground's
_LEAST_SHARE, _MOST_SHARE = 0.02, 0.95  # of the picture that a product covers
_SHADOW_REACH = 0.1  # width of a shadow, as a share of the longer side
_SHARP = 0.6  # of the outline of a part of the product that has the colour of a shadow
_HOLE_SHARE = 0.004  # of the picture: the least enclosed ground
_HANDLE = 0.09  # width of a handle, as a share of the longer side


class CutOutError(ValueError):
    """Raised for a picture in which the product cannot be separated from the ground; says why."""


@dataclass(frozen=True)
class CutOut:
    """A product without its ground.

    Args:
        picture: RGBA, as large as the picture (reduced to `MAX_SIDE`); A is 255 inside the product.
        box: (x0, y0, x1, y1) of what is visible of the product, in pixels of `picture`.
        way (`str`): "plain ground", "saliency" or "core box".
    """

    picture: Image.Image
    box: tuple[int, int, int, int]
    way: str

    @property
    def product(self) -> Image.Image:
        """The part of the picture inside the box, RGBA."""
        return self.picture.crop(self.box)


def cut_out(image: Image.Image, core_box: Box | None = None, saliency: SaliencyDetector | None = None) -> CutOut:
    """Cut the product out of a picture; see the ways at the top.

    Args:
        image: an RGB picture, which is not changed.
        core_box: box of the product in pixels of `image`, if known; what is outside it is ground.
        saliency: a network for grounds that are not plain. Default: none.

    Raises:
        CutOutError: the ground is not plain, and neither a network nor a box finds the product.
    """
    scale = min(1.0, MAX_SIDE / max(image.size))
    small = image if scale == 1.0 else image.resize(_scaled(image.size, scale), Image.Resampling.LANCZOS)
    box = None if core_box is None else clamp_box(tuple(side * scale for side in core_box), *small.size)  # type: ignore[arg-type]
    pixel_HW3 = np.asarray(small.convert("RGB"), dtype=np.float32)
    found = _on_plain_ground(small)
    if found is not None:
        alpha_HW, ground_HW3 = found
        reach = max(1, round(1.5 * max(small.size) / _WORKING_SIDE))
        return _cut(_without_ground(pixel_HW3, ground_HW3, alpha_HW, reach), _inside(alpha_HW, box), "plain ground")
    if saliency is not None:
        mask_HW = saliency.masks([small])[0]
        if box_of_mask(mask_HW, small.size, saliency.options).box is not None:
            alpha_HW = _of_saliency(mask_HW, small.size)
            if _is_product(alpha_HW):
                return _cut(pixel_HW3, _inside(alpha_HW, box), "saliency")
    if box is None:
        raise CutOutError("the ground is not plain, and neither a mask nor a core box shows the product")
    return _cut(pixel_HW3, _of_box(box, small.size), "core box")


def _scaled(size: tuple[int, int], scale: float) -> tuple[int, int]:
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def _cut(pixel_HW3: np.ndarray, alpha_HW: np.ndarray, way: str) -> CutOut:
    rgba_HW4 = np.dstack([pixel_HW3, alpha_HW * 255]).clip(0, 255).round().astype(np.uint8)
    visible_HW = alpha_HW > 0.5
    if not visible_HW.any():
        raise CutOutError("nothing of the product is left without its ground")
    rows, columns = np.flatnonzero(visible_HW.any(axis=1)), np.flatnonzero(visible_HW.any(axis=0))
    box = (int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1)
    return CutOut(Image.fromarray(rgba_HW4, "RGBA"), box, way)


def _is_product(alpha_HW: np.ndarray) -> bool:
    return _LEAST_SHARE <= float(alpha_HW.mean()) <= _MOST_SHARE


def _inside(alpha_HW: np.ndarray, box: Box | None) -> np.ndarray:
    """Return the mask without what lies outside the core box and a margin; unchanged if nothing would be left."""
    if box is None:
        return alpha_HW
    inside_HW = np.zeros_like(alpha_HW)
    wide, high = 0.06 * (box[2] - box[0]), 0.06 * (box[3] - box[1])
    rows = slice(max(0, int(box[1] - high)), int(np.ceil(box[3] + high)))
    columns = slice(max(0, int(box[0] - wide)), int(np.ceil(box[2] + wide)))
    inside_HW[rows, columns] = alpha_HW[rows, columns]
    return inside_HW if _is_product(inside_HW) else alpha_HW


# --- Plain ground ---
def _on_plain_ground(image: Image.Image) -> tuple[np.ndarray, np.ndarray] | None:
    """Return the product's soft mask and the ground's colours in the size of a picture, or None; found at 320 pixels.

    Pictures of fewer than 160 pixels are doubled, because edges are a few pixels wide.
    """
    scale = min(1.0 if max(image.size) >= _WORKING_SIDE / 2 else 2.0, _WORKING_SIDE / max(image.size))
    resample = Image.Resampling.BOX if scale < 1 else Image.Resampling.BICUBIC
    working = image if scale == 1.0 else image.resize(_scaled(image.size, scale), resample)
    pixel_HW3 = np.asarray(working.convert("RGB"), dtype=np.float32)
    ground_HW3 = _plain_ground(pixel_HW3)
    product_HW = None if ground_HW3 is None else _of_plain_ground(pixel_HW3, ground_HW3)
    if ground_HW3 is None or product_HW is None:
        return None
    if scale != 1:
        resized = Image.fromarray(ground_HW3.round().astype(np.uint8)).resize(image.size, Image.Resampling.BILINEAR)
        ground_HW3 = np.asarray(resized, dtype=np.float32)
    return _soft(product_HW, image.size), ground_HW3


def _plain_ground(pixel_HW3: np.ndarray) -> np.ndarray | None:
    """Return the surface of the ground's colour, (H, W, 3), or None if the borders do not show a plain ground.

    `ground(x, y) = a + bx + cy + dx² + exy + fy²` for each channel: least squares over the border, three times, each time without
    the pixels that do not fit.
    """
    height, width = pixel_HW3.shape[:2]
    y_HW, x_HW = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j].astype(np.float32)
    terms_HW6 = np.dstack([np.ones_like(x_HW), x_HW, y_HW, x_HW**2, x_HW * y_HW, y_HW**2])
    wide = max(2, round(_BORDER * min(height, width)))
    border_HW = np.ones((height, width), dtype=bool)
    border_HW[wide:-wide, wide:-wide] = False
    terms_N6, pixel_N3 = terms_HW6[border_HW], pixel_HW3[border_HW]
    middle_3 = np.median(pixel_N3, axis=0)
    fits_N = np.abs(pixel_N3 - middle_3).max(axis=1) <= 40
    for _ in range(3):
        if fits_N.mean() < _LEAST_PLAIN:
            return None
        surface_63, *_ = np.linalg.lstsq(terms_N6[fits_N], pixel_N3[fits_N], rcond=None)
        error_N = np.abs(terms_N6 @ surface_63 - pixel_N3).max(axis=1)
        fits_N = error_N <= max(6.0, 3 * float(np.median(error_N[fits_N])))
    if fits_N.mean() < _LEAST_PLAIN or float(error_N[fits_N].std()) > _MOST_NOISE:
        return None
    # Between the borders the surface must not leave the range of the colours that it was fitted to.
    low_3, high_3 = pixel_N3[fits_N].min(axis=0) - 12, pixel_N3[fits_N].max(axis=0) + 12
    return np.clip(terms_HW6 @ surface_63, low_3, high_3).astype(np.float32)


def _of_plain_ground(pixel_HW3: np.ndarray, ground_HW3: np.ndarray) -> np.ndarray | None:
    """Return the product's mask, (H, W) bool, or None if what is left is not a product.

    A flood that passes shadows leaves clean edges, but it also takes parts of the product that have the colour of a shadow (a
    white shoe on white). A careful flood keeps both. What only the first one takes belongs to the product if a sharp edge
    separates it from the ground, as shadows fade, or if it is far from the ground.
    """
    distance_HW = np.abs(pixel_HW3 - ground_HW3).max(axis=2)
    level_HW = pixel_HW3.mean(axis=2)
    range_HW = ndimage.maximum_filter(level_HW, 3) - ndimage.minimum_filter(level_HW, 3)
    slope_HW = ndimage.gaussian_gradient_magnitude(level_HW, 0.8)
    plain_HW = distance_HW <= 12
    noise = float(np.median(range_HW[plain_HW])) if plain_HW.any() else 4.0
    sharp = max(7.0, 3 * noise)
    like_HW = distance_HW <= max(6.0, 2.5 * noise)
    whole_HW = _outside_of_flood(like_HW, range_HW <= sharp, distance_HW)
    shaded_HW = (distance_HW <= 14) | _shadow(pixel_HW3, ground_HW3)
    product_HW = _outside_of_flood(shaded_HW, slope_HW <= 6, distance_HW)
    depth_HW = ndimage.distance_transform_edt(np.pad(whole_HW, 1))[1:-1, 1:-1]
    product_HW |= whole_HW & (depth_HW > _SHADOW_REACH * max(whole_HW.shape))
    part_HW, count = ndimage.label(whole_HW & ~ndimage.binary_dilation(product_HW, iterations=1))
    rim_HW = ndimage.binary_dilation(~whole_HW, iterations=2)
    for part in np.flatnonzero(np.bincount(part_HW.ravel(), minlength=count + 1) >= 0.002 * part_HW.size):
        outline_HW = (part_HW == part) & rim_HW
        if part and outline_HW.any() and float((range_HW[outline_HW] > max(16.0, sharp)).mean()) >= _SHARP:
            product_HW |= part_HW == part
    product_HW |= ndimage.binary_closing(product_HW, iterations=2) & whole_HW
    flat_HW, _ = ndimage.label(shaded_HW & (slope_HW <= 6))
    product_HW &= ~ndimage.binary_dilation(_holes(flat_HW, ~product_HW, distance_HW))
    product_HW = _large_parts(product_HW)
    return product_HW if _LEAST_SHARE <= product_HW.mean() <= _MOST_SHARE else None


def _outside_of_flood(like_HW: np.ndarray, flat_HW: np.ndarray, distance_HW: np.ndarray) -> np.ndarray:
    """Return what a flood from the borders does not reach, which passes where the colour is the ground's and no edge is."""
    region_HW, _ = ndimage.label(like_HW & flat_HW)
    touching = np.unique(np.concatenate([region_HW[0], region_HW[-1], region_HW[:, 0], region_HW[:, -1]]))
    ground_HW = np.isin(region_HW, touching[touching > 0])
    ground_HW |= _holes(region_HW, ground_HW, distance_HW)
    # An edge keeps the flood two or three pixels away from the product: let it go on where the colour is the ground's.
    ground_HW |= ndimage.binary_dilation(ground_HW, iterations=3) & like_HW
    return _large_parts(ndimage.binary_opening(~ground_HW, iterations=1))


def _shadow(pixel_HW3: np.ndarray, ground_HW3: np.ndarray) -> np.ndarray:
    """Return where the ground is darker without another hue: `pixel ≈ s · ground` for one s of all channels."""
    ratio_HW3 = pixel_HW3 / np.maximum(ground_HW3, 1)
    share_HW = ratio_HW3.mean(axis=2)
    spread_HW = ratio_HW3.max(axis=2) - ratio_HW3.min(axis=2)
    return (share_HW >= _SHADOW[0]) & (share_HW <= _SHADOW[1]) & (spread_HW <= 0.09)


def _holes(region_HW: np.ndarray, ground_HW: np.ndarray, distance_HW: np.ndarray) -> np.ndarray:
    """Return enclosed ground, such as that in the handle of a bag.

    The product around a hole must have another colour than the ground, as a white shirt on white encloses its own colour. Half of
    the outline of a hole must be near the outer ground, as a logo in the middle of a product can have the ground's colour.
    """
    found_HW = np.zeros_like(ground_HW)
    product_HW = ~ground_HW
    if not product_HW.any() or float(np.median(distance_HW[product_HW])) < 40:
        return found_HW
    thickness_HW = ndimage.distance_transform_edt(product_HW)
    sizes = np.bincount(region_HW.ravel())
    for region in np.flatnonzero(sizes >= _HOLE_SHARE * region_HW.size):
        inside_HW = region_HW == region
        if region == 0 or ground_HW[inside_HW].any() or sizes[region] > 0.4 * product_HW.sum():
            continue
        outline_HW = inside_HW & ~ndimage.binary_erosion(inside_HW)
        near = float((thickness_HW[outline_HW] <= _HANDLE * max(region_HW.shape)).mean())
        around_HW = ndimage.binary_dilation(inside_HW, iterations=7) & product_HW
        around_HW &= ~ndimage.binary_dilation(inside_HW, iterations=3)
        inner, outer = float(np.median(distance_HW[inside_HW])), float(np.median(distance_HW[around_HW]))
        is_ground = (inner <= 22 and outer >= 45) or (inner <= 45 and outer >= 2.5 * inner)
        if near >= 0.5 and is_ground:
            found_HW |= inside_HW
    return found_HW


def _large_parts(product_HW: np.ndarray) -> np.ndarray:
    """Return the mask without specks, and without holes of a few pixels."""
    region_HW, count = ndimage.label(product_HW)
    if not count:
        return product_HW
    sizes = np.bincount(region_HW.ravel())
    sizes[0] = 0
    kept_HW = np.isin(region_HW, np.flatnonzero(sizes >= max(0.03 * sizes.max(), 0.002 * product_HW.size)))
    hole_HW, _ = ndimage.label(~kept_HW)
    small = np.flatnonzero(np.bincount(hole_HW.ravel()) < _HOLE_SHARE * product_HW.size)
    return kept_HW | np.isin(hole_HW, small[small > 0])


def _soft(product_HW: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Return a mask with soft edges, which lie half a pixel inside those of the mask, in the size of the picture."""
    alpha_HW = ndimage.gaussian_filter(product_HW.astype(np.float32), 0.9)
    alpha_HW = np.clip((alpha_HW - 0.52) / 0.44, 0, 1)
    if alpha_HW.shape[::-1] == size:
        return alpha_HW
    resized = Image.fromarray((alpha_HW * 255).round().astype(np.uint8)).resize(size, Image.Resampling.BICUBIC)
    return np.asarray(resized, dtype=np.float32) / 255


def _without_ground(pixel_HW3: np.ndarray, ground_HW3: np.ndarray, alpha_HW: np.ndarray, reach: int) -> np.ndarray:
    """Return the picture without the old ground in the product's edges, which would be a halo on another ground.

    A pixel of the edge that is nearer to the ground's colour than the nearest pixel inside takes the colour of that pixel.
    Dividing by alpha (`F = (C - (1 - a) B) / a`) would need an exact alpha.

    Args:
        reach: width of the edge in pixels.
    """
    inner_HW = ndimage.binary_erosion(alpha_HW > 0.5, iterations=reach)
    if not inner_HW.any():
        return pixel_HW3
    far_HW, near = ndimage.distance_transform_edt(~inner_HW, return_indices=True)
    filled_HW3 = pixel_HW3[near[0], near[1]]
    distance_HW = np.abs(pixel_HW3 - ground_HW3).max(axis=2)
    of_inner_HW = np.abs(filled_HW3 - ground_HW3).max(axis=2)
    share_HW = np.clip(1 - distance_HW / np.maximum(of_inner_HW, 1), 0, 1) * 1.6
    weight_HW = np.where((far_HW > 0) & (far_HW <= 2.5 * reach + 1), np.clip(share_HW, 0, 1), 0)[..., None]
    return pixel_HW3 * (1 - weight_HW) + filled_HW3 * weight_HW


# --- Other masks ---
def _of_saliency(mask_HW: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Return a network's mask in the picture's size, with the blurred half of its range stretched to 0 and 1."""
    low, high = float(mask_HW.min()), float(mask_HW.max())
    scaled = Image.fromarray(((mask_HW - low) / max(high - low, 1e-6) * 255).astype(np.uint8))
    alpha_HW = np.asarray(scaled.resize(size, Image.Resampling.BICUBIC), dtype=np.float32) / 255
    return np.clip((alpha_HW - 0.3) / 0.5, 0, 1)


def _of_box(box: Box, size: tuple[int, int]) -> np.ndarray:
    """Return a box whose borders fade over a tenth of its shorter side, with round corners."""
    width, height = size
    x_W, y_H = np.arange(width) + 0.5, np.arange(height) + 0.5
    fade = max(1.0, 0.1 * min(box[2] - box[0], box[3] - box[1]))
    across_W = np.clip(np.minimum(x_W - box[0], box[2] - x_W) / fade, 0, 1)
    down_H = np.clip(np.minimum(y_H - box[1], box[3] - y_H) / fade, 0, 1)
    return (down_H[:, None] * across_W[None, :]).astype(np.float32)
