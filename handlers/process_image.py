"""Resize, crop, turn, filter and compress image files: a handler that does real work, loaded by its path.

    TaskQueue(handlers={"image": "handlers/process_image.py"})
    queue.add("image", {
        "source": "photo.jpg",          # PNG, JPEG, WEBP, GIF (its first frame) or BMP
        "target": "small.webp",         # the suffix chooses the format: .png .jpg .jpeg .webp .gif
        "operations": [{"op": "fit", "width": 800, "height": 600}, {"op": "compress", "quality": 80}],
    })

    source -> read -> operation -> operation -> ... -> temporary file -> os.replace -> target

Both paths must lead below the directories that the node names in DTQ_FILES (see dtq.files): anyone who can add a
task of this type may read any image there, and overwrite it.

A task may run twice (after a kill, say), so the target appears whole or not at all, and it may not be the
source: a second attempt would process the output of the first.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image, ImageFilter, ImageOps

from dtq.files import reading, replacing

MAX_PIXELS = 50_000_000  # 200 MB in memory; Pillow itself warns of decompression bombs from 89 million
FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP", ".gif": "GIF"}
READABLE = ("PNG", "JPEG", "WEBP", "GIF", "BMP")  # some of Pillow's other readers start external programs
FILTERS = {
    name: getattr(ImageFilter, name.upper())
    for name in ("blur", "contour", "detail", "edge_enhance", "emboss", "find_edges", "sharpen", "smooth")
}


def execute(payload: Any, context: Any) -> dict[str, Any] | None:
    """Write the target and return its size in pixels and bytes, its format, and the seconds taken.

    Raises ValueError for a payload that can never work (the message names the field, the value and what is allowed) and
    for a source that is not an image; OSError if a file cannot be read or written. A cancelled task stops before its
    next operation, writes nothing and returns None.
    """
    started = time.perf_counter()
    operations = check_payload(payload)
    source, target = Path(payload["source"]), Path(payload["target"])
    steps = len(operations) + 2  # reading and writing are steps too
    image, bytes_in = read(source)
    picture = Picture(image, {})
    context.progress(100 / steps, f"read {source.name}: {picture}")
    for done, (name, options) in enumerate(operations, start=2):
        if context.cancelled:
            return None
        picture = OPERATIONS[name][0](picture, **options)
        context.progress(100 * done / steps, f"{name}: {picture}")
    bytes_out = write(picture, target)
    context.progress(100, f"wrote {target.name}")
    return {
        "target": str(target),
        "width": picture.image.width,
        "height": picture.image.height,
        "format": FORMATS[target.suffix.lower()],
        "bytes_in": bytes_in,
        "bytes_out": bytes_out,
        "operations": [name for name, _ in operations],
        "seconds": round(time.perf_counter() - started, 6),
    }


# The payload: every field is required, unknown ones are refused, and all are checked before a file is touched.


class Rule(NamedTuple):
    """What a field may hold: in words for the error message, and as a test."""

    allowed: str
    accepts: Callable[[Any], bool]


def whole(low: int, high: int) -> Rule:
    return Rule(f"a whole number from {low} to {high}", lambda v: type(v) is int and low <= v <= high)


def one_of(names: Collection[str]) -> Rule:
    return Rule(f"one of {', '.join(names)}", lambda v: isinstance(v, str) and v in names)


PAYLOAD = {
    "source": Rule("the path of an image file", lambda v: isinstance(v, str) and v != ""),
    "target": Rule(
        f"a path that ends in one of {', '.join(FORMATS)}",
        lambda v: isinstance(v, str) and Path(v).suffix.lower() in FORMATS,
    ),
    "operations": Rule("a list of at most 32", lambda v: isinstance(v, list) and len(v) <= 32),
}


def check_payload(payload: Any) -> list[tuple[str, dict[str, Any]]]:
    """Return the operations in order, each as its name and its options."""
    check_fields("payload", payload, PAYLOAD)
    if Path(payload["source"]).resolve() == Path(payload["target"]).resolve():
        raise refusal("payload.target", payload["target"], "a path other than the source")
    return [check_operation(f"operations[{n}]", given) for n, given in enumerate(payload["operations"])]


def check_operation(where: str, given: Any) -> tuple[str, dict[str, Any]]:
    name: Any = given.get("op") if isinstance(given, dict) else None
    rule = one_of(OPERATIONS)
    check_fields(where, given, {"op": rule} | (OPERATIONS[name][1] if rule.accepts(name) else {}))
    return given["op"], {field: value for field, value in given.items() if field != "op"}


def check_fields(where: str, given: Any, rules: dict[str, Rule]) -> None:
    if not isinstance(given, dict):
        raise refusal(where, given, f"an object with {', '.join(rules)}")
    for field, rule in rules.items():
        if field not in given:
            raise ValueError(f"{where}.{field} is missing; allowed: {rule.allowed}")
        if not rule.accepts(given[field]):
            raise refusal(f"{where}.{field}", given[field], rule.allowed)
    for field in given:
        if field not in rules:
            raise refusal(f"{where}.{field}", given[field], f"only {', '.join(rules)}")


def refusal(field: str, value: object, allowed: str) -> ValueError:
    return ValueError(f"{field} is {value!r:.200}; allowed: {allowed}")


# The operations: each takes a picture and its options, and returns the next picture.


class Picture(NamedTuple):
    """An image in mode L, LA, RGB or RGBA, and the options of its encoder."""

    image: Image.Image
    encoding: dict[str, Any]

    def __str__(self) -> str:
        return f"{self.image.width}x{self.image.height}"


def resize(picture: Picture, width: int, height: int) -> Picture:
    """Scale to exactly this size, without keeping the proportions."""
    check_pixels(width, height)
    return picture._replace(image=picture.image.resize((width, height), Image.Resampling.LANCZOS))


def fit(picture: Picture, width: int, height: int) -> Picture:
    """Scale to the largest size within these bounds that keeps the proportions."""
    check_pixels(width, height)
    return picture._replace(image=ImageOps.contain(picture.image, (width, height), Image.Resampling.LANCZOS))


def crop(picture: Picture, left: int, top: int, width: int, height: int) -> Picture:
    """Cut out the part of this size at this offset, which must lie within the picture."""
    right, bottom = left + width, top + height
    if right > picture.image.width:
        raise refusal("crop.left + width", right, f"at most {picture.image.width}, the picture's width")
    if bottom > picture.image.height:
        raise refusal("crop.top + height", bottom, f"at most {picture.image.height}, the picture's height")
    return picture._replace(image=picture.image.crop((left, top, right, bottom)))


def rotate(picture: Picture, degrees: float) -> Picture:
    """Turn counter-clockwise. The canvas grows, so no corner is cut off."""
    width, height = picture.image.size
    cos, sin = abs(math.cos(math.radians(degrees))), abs(math.sin(math.radians(degrees)))
    check_pixels(int(width * cos + height * sin), int(width * sin + height * cos))
    return picture._replace(image=picture.image.rotate(degrees, Image.Resampling.BICUBIC, expand=True))


def grayscale(picture: Picture) -> Picture:
    return picture._replace(image=picture.image.convert("LA" if "A" in picture.image.getbands() else "L"))


def apply_filter(picture: Picture, name: str) -> Picture:
    return picture._replace(image=picture.image.filter(FILTERS[name]))


def compress(picture: Picture, quality: int) -> Picture:
    """Set the quality of JPEG and WEBP. Lossless formats only spend more time to become smaller."""
    return picture._replace(encoding={"quality": quality, "optimize": True})


SIDE, OFFSET = whole(1, 16_383), whole(0, 16_382)  # pixels; the most that WEBP allows
ANGLE = Rule("a number from -360 to 360", lambda v: type(v) in (int, float) and -360 <= v <= 360)
OPERATIONS: dict[str, tuple[Callable[..., Picture], dict[str, Rule]]] = {
    "resize": (resize, {"width": SIDE, "height": SIDE}),
    "fit": (fit, {"width": SIDE, "height": SIDE}),
    "crop": (crop, {"left": OFFSET, "top": OFFSET, "width": SIDE, "height": SIDE}),
    "rotate": (rotate, {"degrees": ANGLE}),
    "grayscale": (grayscale, {}),
    "filter": (apply_filter, {"name": one_of(FILTERS)}),
    "compress": (compress, {"quality": whole(1, 100)}),
}


# The files.


def check_pixels(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise refusal("width x height", (width, height), f"at most {MAX_PIXELS:,} pixels")


def read(source: Path) -> tuple[Image.Image, int]:
    """Return the image, upright (cameras store a turn beside the pixels), in one of the four modes of a Picture, and
    the size of its file in bytes."""
    with reading(source) as file:
        size = os.fstat(file.fileno()).st_size
        try:
            lazy = Image.open(file, formats=READABLE)
            check_pixels(*lazy.size)  # known from the header, before the pixels are decoded
            image = ImageOps.exif_transpose(lazy)
        except (OSError, Image.DecompressionBombError) as error:
            raise ValueError(f"source {str(source)!r} is no readable image: {error}") from error
    if image.mode in ("L", "LA", "RGB", "RGBA"):
        return image, size
    if image.mode.startswith("I"):  # Pillow would clip these to white
        raise refusal("source", str(source), "8 bits a channel, not 16")
    return image.convert("RGBA" if image.has_transparency_data else "RGB"), size


def write(picture: Picture, target: Path) -> int:
    """Write the file, and return its size in bytes."""
    kind = FORMATS[target.suffix.lower()]
    image = on_white(picture.image) if kind == "JPEG" else picture.image
    with replacing(target) as file:
        image.save(file, kind, **picture.encoding)
        file.flush()
        return os.fstat(file.fileno()).st_size


def on_white(image: Image.Image) -> Image.Image:
    """Return the image on a white background, as JPEG has no transparency."""
    if "A" not in image.getbands():
        return image
    canvas = Image.new("RGBA", image.size, "white")
    canvas.alpha_composite(image.convert("RGBA"))
    return canvas.convert("RGB")
