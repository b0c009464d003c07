# SPDX-License-Identifier: Apache-2.0
"""Images for the network: equal to the released preprocessing, and pixels find their way back."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

from g2vlm_ros.images import preprocessing
from g2vlm_ros.images.preprocessing import PixelMap

GOLDEN = Path(__file__).parents[1] / "data/golden/A"
UNIT = json.loads((GOLDEN / "unit.json").read_text())
SIZES = next(value for key, value in UNIT.items() if key.startswith("load_images"))
SEMANTIC_SIZES = next(value for key, value in UNIT.items() if key.startswith("smart_resize"))
CASES = [
    case
    for case in json.loads((GOLDEN / "cases.json").read_text())
    if not case["case"].endswith("ALIGNED_DINO_WINDOWS")  # holds the images of another case
]
CHATS = [case for case in CASES if case["kind"] == "chat"]


def golden(case: dict) -> dict[str, np.ndarray]:
    path = GOLDEN / f"{case['case']}.safetensors"
    if not path.is_file():
        pytest.skip(f"the optional golden file {path.name} is not in this clone")
    return load_file(path)


def images(case: dict) -> list[np.ndarray]:
    return [preprocessing.load_image(GOLDEN / "images" / f"{name}.png") for name in case["images"]]


def by_name(case: dict) -> str:
    return case["case"]


@pytest.mark.parametrize("row", SIZES, ids=str)
def test_view_size_follows_the_released_table(row):
    width, height, target, want_width, want_height, note = row
    if note == "empty":
        with pytest.raises(ValueError, match="too flat"):
            preprocessing.geometry_size(width, height, target)
    else:
        assert preprocessing.geometry_size(width, height, target) == (want_width, want_height)


@pytest.mark.parametrize("row", SEMANTIC_SIZES, ids=str)
def test_semantic_size_follows_the_released_table(row):
    height, width, want_height, want_width = row
    assert preprocessing.semantic_size(width, height) == (want_width, want_height)


@pytest.mark.parametrize("case", CASES, ids=by_name)
def test_lanczos_views_equal_the_released_ones(case):
    arrays = golden(case)
    views = preprocessing.resize_views(images(case), case["target_width"])
    if "pre.resized_u8" in arrays:
        np.testing.assert_array_equal(views, arrays["pre.resized_u8"])
    else:
        step = case.get("strides", {}).get("pixels", 5)
        np.testing.assert_array_equal(views[:, ::step, ::step], arrays["pre.resized_u8_strided"])


@pytest.mark.parametrize("case", CHATS, ids=by_name)
def test_semantic_images_equal_the_released_ones(case):
    arrays = golden(case)
    for index, image in enumerate(images(case)):
        square = preprocessing.semantic_image(image, case["vit_pixel"])
        np.testing.assert_array_equal(square, arrays[f"vit{index}.resized_u8"])


def test_semantic_image_is_756_square_by_default():
    assert preprocessing.semantic_image(np.zeros((30, 70, 3), np.uint8)).shape == (756, 756, 3)


@pytest.mark.parametrize("case", CASES, ids=by_name)
def test_area_stays_within_its_stated_deviation_from_lanczos(case):
    views = images(case)
    exact = preprocessing.resize_views(views, case["target_width"]).astype(int)
    fast = preprocessing.resize_views(views, case["target_width"], resample="area").astype(int)
    assert fast.shape == exact.shape
    deviation = np.abs(fast - exact).mean(axis=(1, 2, 3))
    assert deviation.max() <= 5.5
    assert deviation.max() > 0  # otherwise the second resampler was not used


def test_area_averages_where_it_shrinks_and_interpolates_where_it_enlarges():
    checkers = np.indices((56, 56)).sum(0) % 2 * 200
    board = np.repeat(checkers[..., None], 3, axis=2).astype(np.uint8)
    assert np.ptp(preprocessing.resize_views([board], 28, "area")) == 0
    step = np.repeat((np.arange(28) >= 14) * 200, 3).reshape(1, 28, 3).repeat(28, axis=0)
    enlarged = preprocessing.resize_views([step.astype(np.uint8)], 112, "area")
    assert len(np.unique(enlarged)) > 2  # repeated pixels would keep two values


def test_other_views_are_stretched_to_the_size_of_the_first():
    first, other = np.zeros((120, 160, 3), np.uint8), np.full((300, 90, 3), 77, np.uint8)
    views = preprocessing.resize_views([first, other], 140)
    assert views.shape == (2, 112, 140, 3)
    assert np.all(views[1] == 77)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "no images"),
        ([np.zeros((8, 8, 3), np.float32)], "image 0 is float32"),
        (
            [np.zeros((8, 8, 3), np.uint8), np.zeros((8, 8), np.uint8)],
            r"image 1 has shape \(8, 8\)",
        ),
        ([np.zeros((8, 8, 4), np.uint8)], r"\(8, 8, 4\)"),
        ([np.zeros((0, 8, 3), np.uint8)], r"\(0, 8, 3\)"),
        ([[[0, 0, 0]]], "image 0 is list"),
        ([np.broadcast_to(np.uint8(0), (9000, 9000, 3))], "9000x9000, above the bound"),
        ([np.zeros((1, 74, 3), np.uint8)], "74x1 is too flat"),
    ],
)
def test_bad_views_are_refused_by_name(given, message):
    with pytest.raises(ValueError, match=message):
        preprocessing.resize_views(given, 518)


def test_unknown_resampler_and_square_are_refused():
    image = np.zeros((8, 8, 3), np.uint8)
    with pytest.raises(ValueError, match="'nearest'"):
        preprocessing.resize_views([image], 28, resample="nearest")
    for square_px in (0, 3585):
        with pytest.raises(ValueError, match=f"square_px is {square_px}"):
            preprocessing.semantic_image(image, square_px)


def test_tall_portraits_grow_up_to_a_bound():
    assert preprocessing.geometry_size(1080, 2400, 518) == (518, 1148)
    tallest = preprocessing.MAX_MODEL_PX // 518 // 14 * 14
    assert preprocessing.geometry_size(518, tallest, 518) == (518, tallest)
    with pytest.raises(ValueError, match=f"518x{tallest + 14}, above the bound"):
        preprocessing.geometry_size(518, tallest + 14, 518)


@pytest.mark.parametrize("target", [0, 13, 520, -14])
def test_target_width_must_be_whole_patches(target):
    with pytest.raises(ValueError, match=f"target width {target} "):
        preprocessing.geometry_size(640, 480, target)


def test_pixel_map_keeps_borders_and_centres():
    pixels = PixelMap((1280, 720), (518, 294))
    np.testing.assert_allclose(pixels.model_from_image([-0.5, -0.5]), [-0.5, -0.5])
    np.testing.assert_allclose(pixels.model_from_image([1279.5, 719.5]), [517.5, 293.5])
    np.testing.assert_allclose(pixels.model_from_image([639.5, 359.5]), [258.5, 146.5])
    with pytest.raises(ValueError, match="at least 1x1"):
        PixelMap((0, 720), (518, 294))


def test_pixel_map_goes_there_and_back():
    pixels = PixelMap((333, 500), (518, 784))
    points = np.random.default_rng(1).uniform(-50, 900, (4, 25, 2))
    there = pixels.model_from_image(points)
    assert np.abs(there - points).max() > 10
    np.testing.assert_allclose(pixels.image_from_model(there), points, atol=1e-9)


@pytest.mark.parametrize("resample", ["lanczos", "area"])
@pytest.mark.parametrize("width", [250, 90])
def test_pixel_map_says_where_resizing_puts_a_pixel(resample, width):
    ramp = np.arange(width)[None, :, None].repeat(width, 0).repeat(3, 2).astype(np.uint8)
    resized = preprocessing.resize_views([ramp], 140, resample)[0]
    pixels = PixelMap((width, width), resized.shape[1::-1])
    u_model = np.arange(10, 130)
    u_image = pixels.image_from_model(np.stack([u_model, u_model], axis=1))[:, 0]
    error = resized[20, 10:130, 0] - u_image
    # Without the half pixel the mean would be off by 0.5 * |width / 140 - 1|, at least 0.18.
    assert abs(error.mean()) < 0.05
    assert np.abs(error).max() < 1.0


def test_pixel_map_agrees_with_float_resizing_of_opencv_and_pillow():
    ramp = np.arange(300, dtype=np.float32)[None].repeat(40, 0)
    width = 112
    pixels = PixelMap((300, 40), (width, 14))
    u_model = np.arange(4, width - 4)
    want = pixels.image_from_model(np.stack([u_model, u_model], axis=1))[:, 0]
    linear = cv2.resize(ramp, (width, 14), interpolation=cv2.INTER_LINEAR)
    lanczos = np.asarray(Image.fromarray(ramp).resize((width, 14), Image.LANCZOS))
    np.testing.assert_allclose(linear[7, 4:-4], want, atol=0.01)
    np.testing.assert_allclose(lanczos[7, 4:-4], want, atol=0.05)


@pytest.fixture
def colours() -> np.ndarray:
    return np.random.default_rng(3).integers(0, 256, (12, 20, 3), np.uint8)


def test_rgb_files_come_unchanged(tmp_path, colours):
    Image.fromarray(colours).save(tmp_path / "a.png")
    loaded = preprocessing.load_image(tmp_path / "a.png")
    np.testing.assert_array_equal(loaded, colours)
    assert loaded.flags.writeable and loaded.dtype == np.uint8
    assert preprocessing.image_size(tmp_path / "a.png") == (20, 12)


def test_grey_palette_and_opaque_alpha_become_rgb(tmp_path, colours):
    grey = colours[..., 0]
    Image.fromarray(grey).save(tmp_path / "grey.png")
    np.testing.assert_array_equal(
        preprocessing.load_image(tmp_path / "grey.png"), np.stack([grey] * 3, axis=-1)
    )
    palette = Image.fromarray(colours).quantize(64)
    palette.save(tmp_path / "palette.png")
    np.testing.assert_array_equal(
        preprocessing.load_image(tmp_path / "palette.png"), np.array(palette.convert("RGB"))
    )
    opaque = np.dstack([colours, np.full((12, 20), 255, np.uint8)])
    Image.fromarray(opaque).save(tmp_path / "opaque.png")
    np.testing.assert_array_equal(preprocessing.load_image(tmp_path / "opaque.png"), colours)


def test_transparent_pixels_are_refused(tmp_path, colours):
    alpha = np.full((12, 20), 255, np.uint8)
    alpha[5, 5] = 254
    Image.fromarray(np.dstack([colours, alpha])).save(tmp_path / "rgba.png")
    Image.fromarray(np.dstack([colours[..., 0], alpha])).save(tmp_path / "la.png")
    Image.fromarray(colours).quantize(16).save(tmp_path / "palette.png", transparency=0)
    for name in ("rgba.png", "la.png", "palette.png"):
        with pytest.raises(ValueError, match="transparent"):
            preprocessing.load_image(tmp_path / name)


def test_depth_images_are_refused(tmp_path):
    Image.fromarray(np.full((8, 8), 3000, np.uint16)).save(tmp_path / "depth.png")
    Image.fromarray(np.full((8, 8), 3.0, np.float32)).save(tmp_path / "depth.tif")
    for name in ("depth.png", "depth.tif"):
        with pytest.raises(ValueError, match="pixel format .* 8-bit RGB"):
            preprocessing.load_image(tmp_path / name)
        with pytest.raises(ValueError, match="pixel format"):
            preprocessing.image_size(tmp_path / name)


def test_exif_rotation_is_applied_only_on_request(tmp_path, colours):
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: rotate by 90 degrees clockwise to view
    Image.fromarray(colours).save(tmp_path / "phone.png", exif=exif)
    np.testing.assert_array_equal(preprocessing.load_image(tmp_path / "phone.png"), colours)
    np.testing.assert_array_equal(
        preprocessing.load_image(tmp_path / "phone.png", upright=True), np.rot90(colours, -1)
    )


def test_files_that_are_no_images_are_refused(tmp_path, colours, monkeypatch):
    with pytest.raises(FileNotFoundError, match=r"none\.png"):
        preprocessing.load_image(tmp_path / "none.png")
    (tmp_path / "text.png").write_text("no pixels here")
    with pytest.raises(ValueError, match=r"text\.png is not a readable image"):
        preprocessing.load_image(tmp_path / "text.png")
    Image.fromarray(colours.repeat(20, 0).repeat(20, 1)).save(tmp_path / "whole.jpg")
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "whole.jpg").read_bytes()[:3000])
    with pytest.raises(ValueError, match=r"cut\.jpg is damaged"):
        preprocessing.load_image(tmp_path / "cut.jpg")
    monkeypatch.setattr(preprocessing, "MAX_IMAGE_PX", 1000)
    with pytest.raises(ValueError, match="400x240, above 1000 pixels"):
        preprocessing.load_image(tmp_path / "whole.jpg")


def test_a_view_of_the_scene_before_is_not_resized_again(monkeypatch):
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (48, 64, 3), np.uint8) for _ in range(3)]
    resized, real = [], preprocessing.resize_lanczos

    def counted(image, *rest):
        resized.append(image)
        real(image, *rest)

    monkeypatch.setattr(preprocessing, "resize_lanczos", counted)
    first = preprocessing.resize_views(images[:2], 28)
    again = preprocessing.resize_views(images[1:], 28, resized=[first[1], None])
    assert len(resized) == 3 and resized[2] is images[2]
    np.testing.assert_array_equal(again, preprocessing.resize_views(images[1:], 28))
    # A view of another size is of no use.
    preprocessing.resize_views(images[1:], 42, resized=[first[1], None])
    assert len(resized) == 7
