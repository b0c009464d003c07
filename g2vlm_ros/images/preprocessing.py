# SPDX-License-Identifier: Apache-2.0
"""Camera image -> model image, and the way back for pixels.

The network sees an image twice: stretched to `geometry_size` for the geometric encoder, and as a
square (`semantic_image`) for the semantic one. Both are uint8 RGB here; the stages normalise.
Everything equals the released model's preprocessing byte for byte unless a docstring says so.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from g2vlm_ros.kernels.resize import resize_lanczos

PATCH_PX = 14
MAX_IMAGE_PX = 80_000_000
"""Most pixels of an input image: 80 megapixels, larger ones are refused."""
MAX_MODEL_PX = 2072 * 2072
"""Most pixels of one view inside the network; portraits grow tall and are refused above this."""

_SEMANTIC_STEP_PX = 2 * PATCH_PX
_SEMANTIC_MIN_PX = 56 * 56
_SEMANTIC_MAX_PX = 3584 * 3584
_READABLE_MODES = ("RGB", "L", "1", "P", "CMYK", "YCbCr", "LA", "PA", "RGBA")


@dataclass(frozen=True)
class PixelMap:
    """Pixel coordinates of an image <-> those of its resized model image.

    Pixel centres lie at integers, so u_model = (u_image + 0.5) * W / w - 0.5, likewise for v.
    """

    image_size_px: tuple[int, int]
    """(width, height) of the camera image."""
    model_size_px: tuple[int, int]
    """(width, height) of the image inside the network."""

    def __post_init__(self) -> None:
        if min(*self.image_size_px, *self.model_size_px) < 1:
            raise ValueError(
                f"image {self.image_size_px} and model image {self.model_size_px} must be at "
                "least 1x1 pixel; pass sizes as (width, height)"
            )

    def model_from_image(self, pixels: np.ndarray) -> np.ndarray:
        """Pixels (..., 2) as (u, v) of the camera image -> float64 (..., 2) of the model image."""
        return (np.asarray(pixels, np.float64) + 0.5) * self._scale() - 0.5

    def image_from_model(self, pixels: np.ndarray) -> np.ndarray:
        """Pixels (..., 2) as (u, v) of the model image -> float64 (..., 2) of the camera image."""
        return (np.asarray(pixels, np.float64) + 0.5) / self._scale() - 0.5

    def _scale(self) -> np.ndarray:
        return np.divide(self.model_size_px, self.image_size_px)


def geometry_size(
    width_px: int, height_px: int, target_width_px: int, patch_px: int = PATCH_PX
) -> tuple[int, int]:
    """(width, height) of every view of a window whose first image is width_px x height_px.

    The width is the target, the height follows the aspect in whole patches (ties to even), so a
    1080x1920 portrait becomes 518x924. ValueError where less than half a patch row would be left,
    and where the view would exceed MAX_MODEL_PX.
    """
    if min(width_px, height_px) < 1:
        raise ValueError(f"image size {width_px}x{height_px} must be at least 1x1 pixel")
    if target_width_px < patch_px or target_width_px % patch_px:
        raise ValueError(
            f"target width {target_width_px} must be a positive multiple of the patch size "
            f"{patch_px}; {max(1, target_width_px // patch_px) * patch_px} would do"
        )
    height = round(height_px * (target_width_px / width_px) / patch_px) * patch_px
    if height == 0:
        raise ValueError(
            f"image {width_px}x{height_px} is too flat: at width {target_width_px} its height "
            f"rounds to 0 of the at least {patch_px} pixels needed; crop its width"
        )
    if target_width_px * height > MAX_MODEL_PX:
        raise ValueError(
            f"image {width_px}x{height_px} would become {target_width_px}x{height}, above the "
            f"bound of {MAX_MODEL_PX} pixels; crop its height or choose a smaller target width"
        )
    return target_width_px, height


def resize_views(
    images: Sequence[np.ndarray],
    target_width_px: int,
    resample: str = "lanczos",
    resized: Sequence[np.ndarray | None] = (),
) -> np.ndarray:
    """The views of a window, all stretched to the size of the first: uint8 (N, H, W, 3).

    images: uint8 (h, w, 3) RGB each; others than the first may have any aspect, nothing is
    cropped (as released).
    resized: what an earlier call made of some of the images, None for the others; taken where it
    has the size that is due.
    resample: "lanczos" is the released call, byte for byte. "area" is OpenCV's:
    INTER_AREA where a view shrinks in both directions, INTER_CUBIC where it does not (area would
    repeat pixels). Its deviation from lanczos is 0.8 grey levels on average on 640x480 photographs
    (99 % within 8), and at most 5.5 on average per view on the harsh golden images.
    """
    if len(images) == 0:
        raise ValueError("no images given; a window needs at least one view")
    if resample not in ("lanczos", "area"):
        raise ValueError(f"resample is '{resample}'; it must be 'lanczos' or 'area'")
    for index, image in enumerate(images):
        _check_pixels(image, f"image {index}")
    height_px, width_px = images[0].shape[:2]
    size = geometry_size(width_px, height_px, target_width_px)
    views = np.empty((len(images), size[1], size[0], 3), np.uint8)
    for index, image in enumerate(images):
        earlier = resized[index] if index < len(resized) else None
        if earlier is not None and earlier.shape == views.shape[1:]:
            views[index] = earlier
        elif resample == "area":
            views[index] = _resize_fast(image, size)
        else:
            resize_lanczos(image, *size, views[index])
    return views


def semantic_size(width_px: int, height_px: int) -> tuple[int, int]:
    """(width, height) in whole 28-pixel cells (a merged 2x2 of patches) near the given size.

    Each side rounds to the nearest cell (ties to even); if the area then leaves 56^2..3584^2
    pixels, both sides are scaled by one factor to fit it.
    """
    if min(width_px, height_px) < 1:
        raise ValueError(f"image size {width_px}x{height_px} must be at least 1x1 pixel")
    step = _SEMANTIC_STEP_PX
    width, height = (max(1, round(side / step)) * step for side in (width_px, height_px))
    if width * height > _SEMANTIC_MAX_PX:
        shrink = math.sqrt(width_px * height_px / _SEMANTIC_MAX_PX)
        width, height = (
            max(1, math.floor(side / shrink / step)) * step for side in (width_px, height_px)
        )
    elif width * height < _SEMANTIC_MIN_PX:
        grow = math.sqrt(_SEMANTIC_MIN_PX / (width_px * height_px))
        width, height = (math.ceil(side * grow / step) * step for side in (width_px, height_px))
    return width, height


def semantic_image(image: np.ndarray, square_px: int = 768) -> np.ndarray:
    """The square that the semantic encoder sees: uint8 (H, W, 3), 756x756 by default.

    Two bicubic resizes in a row as released: to square_px, then to `semantic_size` of it.
    """
    _check_pixels(image, "image")
    if square_px < 1 or square_px**2 > _SEMANTIC_MAX_PX:
        raise ValueError(f"square_px is {square_px}; it must be within 1..3584 (released: 768)")
    square = _resize(image, (square_px, square_px), Image.BICUBIC)
    return _resize(square, semantic_size(square_px, square_px), Image.BICUBIC)


def load_image(path: str | Path, upright: bool = False) -> np.ndarray:
    """An image file as uint8 (h, w, 3) RGB; ValueError with the reason where that is not possible.

    8-bit RGB comes as it is. Greyscale is repeated over three channels; palette and CMYK files
    are converted; an alpha channel is dropped where it is opaque everywhere and refused otherwise
    (hidden pixels have no colour); greyscale above 8 bit (depth, raw) is refused. Of animations
    and multi-page files the first image is taken. As released, the EXIF rotation of phone
    pictures is not applied unless `upright`.
    """
    with _open(path) as image:
        try:
            image.load()
        except (OSError, SyntaxError, ValueError) as error:
            raise ValueError(f"{path} is damaged ({error}); replace or remove the file") from error
        if upright:
            image = ImageOps.exif_transpose(image)
        if image.mode != "RGB":
            image = _to_rgb(image, path)
        return np.array(image)


def image_size(path: str | Path) -> tuple[int, int]:
    """(width, height) from the header, refusing by it what `load_image` would refuse."""
    with _open(path) as image:
        return image.size


def _open(path: str | Path) -> Image.Image:
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path} is not a file; give the path of an image")
    try:
        image = Image.open(path)
    except Image.DecompressionBombError as error:
        raise ValueError(f"{path} is above {MAX_IMAGE_PX} pixels; shrink it first") from error
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        raise ValueError(
            f"{path} is not a readable image ({error}); convert it to JPEG or PNG"
        ) from error
    reason = None
    if image.mode not in _READABLE_MODES:
        reason = f"has pixel format {image.mode} (depth, raw or other); convert it to 8-bit RGB"
    elif image.width * image.height > MAX_IMAGE_PX:
        reason = f"is {image.width}x{image.height}, above {MAX_IMAGE_PX} pixels; shrink it first"
    if reason:
        image.close()
        raise ValueError(f"{path} {reason}")
    return image


def _to_rgb(image: Image.Image, path: str | Path) -> Image.Image:
    if image.mode in ("LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
    if image.mode == "RGBA" and image.getextrema()[3][0] < 255:
        raise ValueError(
            f"{path} has transparent pixels, which have no colour; flatten it on a background"
        )
    return image.convert("RGB")


def _check_pixels(image: np.ndarray, name: str) -> None:
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8:
        kind = getattr(image, "dtype", type(image).__name__)
        raise ValueError(f"{name} is {kind}; it must be a numpy array of uint8 (0..255)")
    if image.ndim != 3 or image.shape[2] != 3 or image.size == 0:
        raise ValueError(
            f"{name} has shape {image.shape}; it must be (height, width, 3) RGB with at least "
            "one pixel; repeat a grey image over three channels"
        )
    if image.shape[0] * image.shape[1] > MAX_IMAGE_PX:
        raise ValueError(
            f"{name} is {image.shape[1]}x{image.shape[0]}, above the bound of {MAX_IMAGE_PX} "
            "pixels; shrink it first"
        )


def _resize(image: np.ndarray, size_px: tuple[int, int], filter_: int) -> np.ndarray:
    """Pillow's bicubic resize in the order of passes of Pillow 13, whatever version is installed.

    Older ones always begin with the width. Overshoot is clipped between the passes, so the order
    changes pixels, and the golden vectors were made by Pillow 13.
    """
    (height, width), (new_width, new_height) = image.shape[:2], size_px
    rows_lost, columns_lost = height - new_height, width - new_width
    rows_first = rows_lost > max(0, 2 * columns_lost)
    half_way = (width, new_height) if rows_first else (new_width, height)
    return np.asarray(Image.fromarray(image).resize(half_way, filter_).resize(size_px, filter_))


def _resize_fast(image: np.ndarray, size_px: tuple[int, int]) -> np.ndarray:
    shrinks = size_px[0] <= image.shape[1] and size_px[1] <= image.shape[0]
    filter_ = cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC
    return cv2.resize(image, size_px, interpolation=filter_)
