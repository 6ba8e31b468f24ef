"""handlers/process_image.py: it writes the pixels that Pillow computes, and a failure leaves no file behind."""

from __future__ import annotations

import json
import re

import pytest
from handler_lab import FakeContext, load
from PIL import Image, ImageChops, ImageFilter, ImageOps

SIZE = 60, 40


@pytest.fixture(autouse=True)
def allowed(tmp_path, monkeypatch):
    """Let handlers touch only files below `tmp_path`, which is also the working directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DTQ_FILES", str(tmp_path))


@pytest.fixture(scope="module")
def handler():
    return load("process_image")


@pytest.fixture
def context():
    return FakeContext()


@pytest.fixture
def picture():
    """A picture without symmetry, with fine detail in every channel."""
    ramp = Image.linear_gradient("L").resize(SIZE)
    return Image.merge("RGB", [ramp, ImageOps.mirror(ramp.rotate(90)), Image.radial_gradient("L").resize(SIZE)])


@pytest.fixture
def source(tmp_path, picture):
    path = tmp_path / "source.png"
    picture.save(path)
    return path


@pytest.fixture
def target(tmp_path):
    return tmp_path / "out" / "target.png"


@pytest.fixture(autouse=True)
def target_folder(target):
    target.parent.mkdir()


def job(source, target, *operations):
    return {"source": str(source), "target": str(target), "operations": list(operations)}


def same_pixels(path, expected):
    with Image.open(path) as image:
        return image.mode == expected.mode and not ImageChops.difference(image, expected).getbbox(alpha_only=False)


LANCZOS, BICUBIC = Image.Resampling.LANCZOS, Image.Resampling.BICUBIC


@pytest.mark.parametrize(
    ("operation", "by_pillow"),
    [
        ({"op": "resize", "width": 33, "height": 7}, lambda image: image.resize((33, 7), LANCZOS)),
        ({"op": "fit", "width": 30, "height": 30}, lambda image: image.resize((30, 20), LANCZOS)),
        (
            {"op": "crop", "left": 5, "top": 6, "width": 7, "height": 8},
            lambda image: image.crop((5, 6, 12, 14)),
        ),
        ({"op": "rotate", "degrees": 90}, lambda image: image.transpose(Image.Transpose.ROTATE_90)),
        ({"op": "rotate", "degrees": -12.5}, lambda image: image.rotate(-12.5, BICUBIC, expand=True)),
        ({"op": "grayscale"}, lambda image: image.convert("L")),
        ({"op": "filter", "name": "blur"}, lambda image: image.filter(ImageFilter.BLUR)),
        ({"op": "filter", "name": "sharpen"}, lambda image: image.filter(ImageFilter.SHARPEN)),
        ({"op": "filter", "name": "contour"}, lambda image: image.filter(ImageFilter.CONTOUR)),
        ({"op": "compress", "quality": 50}, lambda image: image),
    ],
    ids=lambda value: "-".join(str(part) for part in value.values()) if isinstance(value, dict) else "",
)
def test_an_operation_makes_the_pixels_that_pillow_makes(
    handler, context, source, target, picture, operation, by_pillow
):
    handler.execute(job(source, target, operation), context)
    assert same_pixels(target, by_pillow(picture))


def test_operations_apply_in_order(handler, context, source, target, picture):
    crop = {"op": "crop", "left": 0, "top": 0, "width": 20, "height": 10}
    handler.execute(job(source, target, crop, {"op": "rotate", "degrees": 90}, {"op": "grayscale"}), context)
    assert same_pixels(target, picture.crop((0, 0, 20, 10)).rotate(90, expand=True).convert("L"))


def test_every_allowed_filter_exists(handler, context, source, target):
    handler.execute(job(source, target, *({"op": "filter", "name": name} for name in handler.FILTERS)), context)
    assert target.exists()


def test_the_result_describes_the_written_file(handler, context, source, target):
    result = handler.execute(job(source, target, {"op": "resize", "width": 8, "height": 9}), context)
    seconds = result.pop("seconds")
    assert 0 < seconds < 60
    assert result == {
        "target": str(target),
        "width": 8,
        "height": 9,
        "format": "PNG",
        "bytes_in": source.stat().st_size,
        "bytes_out": target.stat().st_size,
        "operations": ["resize"],
    }
    assert json.loads(json.dumps(result)) == result


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".jpeg", ".webp", ".gif", ".JPG"])
def test_the_suffix_of_the_target_chooses_the_format(handler, context, source, target, suffix):
    result = handler.execute(job(source, target.with_suffix(suffix)), context)
    with Image.open(target.with_suffix(suffix)) as image:
        assert image.format == result["format"] == handler.FORMATS[suffix.lower()]
        assert image.size == SIZE


@pytest.mark.parametrize("suffix", [".jpg", ".webp"])
def test_a_lower_quality_makes_a_smaller_file(handler, context, source, target, suffix):
    def size(quality):
        compress = {"op": "compress", "quality": quality}
        return handler.execute(job(source, target.with_suffix(suffix), compress), context)["bytes_out"]

    assert size(10) < size(60) < size(95)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA"])
@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".gif"])
def test_every_mode_passes_through_every_operation(handler, context, tmp_path, target, picture, mode, suffix):
    picture.convert(mode).save(tmp_path / "source.png")
    operations = [
        {"op": "fit", "width": 50, "height": 50},
        {"op": "filter", "name": "sharpen"},
        {"op": "rotate", "degrees": 30},
        {"op": "grayscale"},
        {"op": "compress", "quality": 70},
    ]
    result = handler.execute(job(tmp_path / "source.png", target.with_suffix(suffix), *operations), context)
    assert result["operations"] == ["fit", "filter", "rotate", "grayscale", "compress"]


def test_transparency_becomes_white_in_a_jpeg(handler, context, tmp_path, target):
    Image.new("RGBA", SIZE, (255, 0, 0, 0)).save(tmp_path / "clear.png")
    handler.execute(job(tmp_path / "clear.png", target.with_suffix(".jpg")), context)
    with Image.open(target.with_suffix(".jpg")) as image:
        assert image.getpixel((5, 5)) == (255, 255, 255)


def test_a_photo_taken_sideways_comes_out_upright(handler, context, tmp_path, target, picture):
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: turned by 90 degrees
    picture.save(tmp_path / "sideways.png", exif=exif)
    handler.execute(job(tmp_path / "sideways.png", target), context)
    assert same_pixels(target, picture.transpose(Image.Transpose.ROTATE_270))


def test_progress_rises_to_100_with_a_note_for_each_step(handler, context, source, target):
    operations = {"op": "grayscale"}, {"op": "resize", "width": 9, "height": 7}
    handler.execute(job(source, target, *operations), context)
    assert context.reports == [
        (25, "read source.png: 60x40"),
        (50, "grayscale: 60x40"),
        (75, "resize: 9x7"),
        (100, "wrote target.png"),
    ]


def test_a_cancelled_task_stops_before_the_next_operation_and_writes_nothing(handler, source, target):
    context = FakeContext(cancel_after=2)
    assert handler.execute(job(source, target, *[{"op": "grayscale"}] * 3), context) is None
    assert len(context.reports) == 2
    assert list(target.parent.iterdir()) == []


FITS = {"source": "in.png", "target": "out.png", "operations": []}


@pytest.mark.parametrize(
    ("payload", "message"),
    [
        (None, "payload is None; allowed: an object with source, target, operations"),
        ({"target": "out.png", "operations": []}, "payload.source is missing; allowed: the path"),
        (FITS | {"source": 7}, "payload.source is 7; allowed: the path of an image file"),
        (
            FITS | {"target": "out.exe"},
            "payload.target is 'out.exe'; allowed: a path that ends in one of .png, .jpg",
        ),
        (
            FITS | {"target": "./in.png"},
            "payload.target is './in.png'; allowed: a path other than the source",
        ),
        (FITS | {"operations": "blur"}, "payload.operations is 'blur'; allowed: a list of at most 32"),
        (FITS | {"operations": [{}] * 33}, "allowed: a list of at most 32"),
        (FITS | {"quality": 5}, "payload.quality is 5; allowed: only source, target, operations"),
    ],
)
def test_a_refused_payload_names_the_field_the_value_and_what_is_allowed(handler, context, payload, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        handler.execute(payload, context)


@pytest.mark.parametrize(
    ("operation", "message"),
    [
        ("blur", "operations[1] is 'blur'; allowed: an object with op"),
        ({}, "operations[1].op is missing; allowed: one of resize, fit, crop"),
        ({"op": "melt"}, "operations[1].op is 'melt'; allowed: one of resize, fit, crop"),
        ({"op": ["resize"]}, "operations[1].op is ['resize']; allowed: one of resize"),
        (
            {"op": "resize", "width": 5},
            "operations[1].height is missing; allowed: a whole number from 1 to 16383",
        ),
        (
            {"op": "resize", "width": 0, "height": 5},
            "operations[1].width is 0; allowed: a whole number from 1",
        ),
        ({"op": "fit", "width": 5, "height": True}, "operations[1].height is True; allowed: a whole number"),
        ({"op": "fit", "width": 5, "height": 2.5}, "operations[1].height is 2.5; allowed: a whole number"),
        (
            {"op": "crop", "left": -1, "top": 0, "width": 1, "height": 1},
            "operations[1].left is -1; allowed: a whole",
        ),
        (
            {"op": "rotate", "degrees": float("nan")},
            "operations[1].degrees is nan; allowed: a number from -360 to 360",
        ),
        (
            {"op": "filter", "name": "getattr"},
            "operations[1].name is 'getattr'; allowed: one of blur, contour",
        ),
        (
            {"op": "compress", "quality": 101},
            "operations[1].quality is 101; allowed: a whole number from 1 to 100",
        ),
        ({"op": "grayscale", "depth": 8}, "operations[1].depth is 8; allowed: only op"),
    ],
)
def test_a_refused_operation_names_its_place_too_and_nothing_is_read(handler, context, operation, message):
    payload = job("no-such-file.png", "out.png", {"op": "grayscale"}, operation)
    with pytest.raises(ValueError, match=re.escape(message)):
        handler.execute(payload, context)
    assert context.reports == []


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ((50, 0, 11, 5), "crop.left + width is 61; allowed: at most 60, the picture's width"),
        ((0, 30, 5, 11), "crop.top + height is 41; allowed: at most 40, the picture's height"),
    ],
)
def test_a_crop_beyond_the_picture_is_refused(handler, context, source, target, part, message):
    crop = {"op": "crop"} | dict(zip(("left", "top", "width", "height"), part, strict=True))
    with pytest.raises(ValueError, match=re.escape(message)):
        handler.execute(job(source, target, crop), context)


@pytest.mark.parametrize(
    "operations",
    [
        pytest.param([{"op": "resize", "width": 16_383, "height": 16_383}], id="resize"),
        pytest.param([{"op": "fit", "width": 16_383, "height": 16_383}], id="fit"),
        pytest.param([{"op": "resize", "width": 16_383, "height": 1}, {"op": "rotate", "degrees": 45}], id="rotate"),
    ],
)
def test_no_operation_may_grow_the_picture_beyond_the_limit(handler, context, source, target, operations):
    with pytest.raises(ValueError, match=r"width x height is \(\d+, \d+\); allowed: at most 50,000,000 pixels"):
        handler.execute(job(source, target, *operations), context)


def test_a_source_beyond_the_limit_is_refused_before_it_is_decoded(handler, context, source, target, monkeypatch):
    monkeypatch.setattr(handler, "MAX_PIXELS", SIZE[0] * SIZE[1] - 1)
    source.write_bytes(source.read_bytes()[:100])  # the header alone: decoding would be another error
    with pytest.raises(ValueError, match=r"width x height is \(60, 40\); allowed: at most 2,399 pixels"):
        handler.execute(job(source, target), context)


def test_pillows_own_guard_against_decompression_bombs_is_an_error(handler, context, source, target, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(ValueError, match=r"no readable image: Image size .* decompression bomb"):
        handler.execute(job(source, target), context)


def test_a_missing_source_is_named(handler, context, tmp_path, target):
    with pytest.raises(FileNotFoundError, match=r"missing\.png"):
        handler.execute(job(tmp_path / "missing.png", target), context)


@pytest.mark.parametrize("damage", [lambda data: b"not an image", lambda data: data[:200], lambda data: b""])
def test_a_corrupt_source_is_named(handler, context, source, target, damage):
    source.write_bytes(damage(source.read_bytes()))
    with pytest.raises(ValueError, match=r"source .*source\.png' is no readable image"):
        handler.execute(job(source, target), context)
    assert list(target.parent.iterdir()) == []


def test_16_bits_a_channel_are_refused_rather_than_clipped(handler, context, source, target):
    Image.new("I;16", SIZE, 40_000).save(source)
    with pytest.raises(ValueError, match="allowed: 8 bits a channel"):
        handler.execute(job(source, target), context)


def test_a_target_in_a_folder_that_does_not_exist_is_an_oserror(handler, context, source, tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        handler.execute(job(source, tmp_path / "nowhere" / "out.png"), context)


def test_a_target_that_cannot_be_replaced_leaves_no_temporary_file(handler, context, source, target):
    target.mkdir()
    with pytest.raises(OSError, match=r"target\.png"):
        handler.execute(job(source, target), context)
    assert list(target.parent.iterdir()) == [target]


def test_an_operation_that_fails_leaves_the_old_target_untouched(handler, context, source, target):
    target.write_bytes(b"old")
    crop = {"op": "crop", "left": 0, "top": 0, "width": 61, "height": 1}
    with pytest.raises(ValueError, match="crop"):
        handler.execute(job(source, target, crop), context)
    assert target.read_bytes() == b"old"
    assert list(target.parent.iterdir()) == [target]


def test_a_write_that_fails_midway_leaves_the_old_target_and_no_temporary_file(
    handler, context, source, target, monkeypatch
):
    def full_disk(image, file, *args, **options):
        file.write(b"half")
        raise OSError("No space left on device")

    target.write_bytes(b"old")
    monkeypatch.setattr(Image.Image, "save", full_disk)
    with pytest.raises(OSError, match="No space left"):
        handler.execute(job(source, target), context)
    assert target.read_bytes() == b"old"
    assert list(target.parent.iterdir()) == [target]


def test_a_second_run_writes_the_same_file(handler, context, source, target):
    payload = job(source, target, {"op": "rotate", "degrees": 10}, {"op": "compress", "quality": 60})
    handler.execute(payload, context)
    first = target.read_bytes()
    handler.execute(payload, context)
    assert target.read_bytes() == first
    assert list(target.parent.iterdir()) == [target]


def test_the_target_gets_the_usual_permissions(handler, context, source, target):
    handler.execute(job(source, target), context)
    assert target.stat().st_mode == source.stat().st_mode
