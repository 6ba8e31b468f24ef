"""Pictures to process: real files, made from a seed, identical on every machine with the same Pillow."""

from __future__ import annotations

import random
from pathlib import Path

from PIL import Image, ImageDraw

WIDTH, HEIGHT = 960, 640  # pixels


def make_images(directory: str | Path, n: int, seed: int = 0) -> list[Path]:
    """Write n JPEG pictures of hills below an evening sky. Return their paths."""
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    paths = [directory / f"picture-{number:03}.jpg" for number in range(n)]
    for number, path in enumerate(paths):
        _landscape(random.Random(f"{seed}-{number}")).save(path, quality=90)
    return paths


def _landscape(chance: random.Random) -> Image.Image:
    picture = _sky(chance)
    draw = ImageDraw.Draw(picture)
    _sun(draw, chance)
    for nearness in (0.35, 0.55, 0.8):
        _hills(draw, chance, nearness)
    return picture


def _sky(chance: random.Random) -> Image.Image:
    """Return a vertical gradient of two colours."""
    top, bottom = (chance.randint(20, 90), chance.randint(40, 110), 160), (250, chance.randint(120, 200), 120)
    column = Image.new("RGB", (1, 2))
    column.putdata([top, bottom])
    return column.resize((WIDTH, HEIGHT), Image.Resampling.BILINEAR)


def _sun(draw: ImageDraw.ImageDraw, chance: random.Random) -> None:
    x, y, r = chance.randint(120, WIDTH - 120), chance.randint(100, 340), chance.randint(36, 80)
    draw.ellipse((x - r, y - r, x + r, y + r), fill=(255, 235, 190))


def _hills(draw: ImageDraw.ImageDraw, chance: random.Random, nearness: float) -> None:
    """Draw a ridge of straight lines, darker the nearer it is."""
    heights = [HEIGHT * (1 - 0.55 * (1 - nearness)) - chance.randint(0, 120) for _ in range(9)]
    ridge = [(WIDTH * i / 8, height) for i, height in enumerate(heights)]
    shade = int(150 * (1 - nearness))
    draw.polygon([(0, HEIGHT), *ridge, (WIDTH, HEIGHT)], fill=(shade // 2, shade, shade // 2 + 30))
