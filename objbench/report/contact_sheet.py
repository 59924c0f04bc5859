"""Scenes side by side with their true boxes, coloured by class, as one picture."""

from __future__ import annotations

import colorsys
import math
from collections.abc import Sequence

import torch
from PIL import Image, ImageDraw, ImageFont

from objbench.scenes import Scenes

Colour = tuple[int, int, int]

_TILE = 256  # pixels along the longer side of an image, where a whole zoom allows
_GAP, _MARGIN, _FONT = 8, 20, 17
_INK, _FAINT, _PAPER = (32, 32, 36), (120, 120, 128), (250, 250, 248)

_BRIGHT: tuple[Colour, ...] = (
    (255, 82, 82),  # red
    (255, 159, 28),  # orange
    (255, 230, 80),  # yellow
    (104, 211, 74),  # green
    (0, 206, 178),  # teal
    (86, 196, 255),  # sky
    (82, 113, 255),  # blue
    (170, 94, 255),  # violet
    (255, 105, 205),  # pink
    (196, 150, 108),  # tan
)


def contact_sheet(scenes: Scenes, classes: Sequence[str], title: str) -> Image.Image:
    """All `scenes` in rows under a title and a legend of the classes. Images have 1 or 3 channels."""
    pictures = as_pictures(scenes)
    width, height = pictures[0].size
    zoom = max(1, _TILE // max(width, height))
    tile_w, tile_h = width * zoom, height * zoom
    columns = max(math.sqrt(len(pictures) * 1.5 * tile_h / tile_w), 512 / tile_w)  # a sheet of about 3:2
    rows = math.ceil(len(pictures) / math.ceil(columns))
    columns = math.ceil(len(pictures) / rows)  # the last row is as full as the others, as far as can be
    font, bold = ImageFont.load_default(_FONT), ImageFont.load_default(_FONT + 5)
    sheet_w = max(
        2 * _MARGIN + columns * (tile_w + _GAP) - _GAP, 2 * _MARGIN + math.ceil(bold.getlength(title))
    )

    legend = _legend(classes, font, sheet_w - 2 * _MARGIN)
    line = _FONT + 12
    top = _MARGIN + 2 * _FONT + line * (legend[-1][1] + 1)
    sheet = Image.new("RGB", (sheet_w, top + rows * (tile_h + _GAP) - _GAP + _MARGIN), _PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((_MARGIN, _MARGIN - 4), title, _INK, bold)
    for k, (x, row) in enumerate(legend):
        x, y = x + _MARGIN, _MARGIN + 2 * _FONT + row * line
        draw.rounded_rectangle((x, y, x + 15, y + 15), 3, fill=colour(k, len(classes)))
        draw.text((x + 22, y - 3), classes[k], _INK, font)

    for i, picture in enumerate(pictures):
        x, y = _MARGIN + i % columns * (tile_w + _GAP), top + i // columns * (tile_h + _GAP)
        here = scenes.truth.image == i
        tile = picture.convert("RGB").resize((tile_w, tile_h), Image.Resampling.NEAREST)
        pen = ImageDraw.Draw(tile)
        for box, label in zip(scenes.truth.boxes[here], scenes.truth.labels[here], strict=True):
            x0, y0, x1, y1 = (box * zoom).tolist()
            pen.rectangle((x0 - 1, y0 - 1, x1, y1), outline=colour(int(label), len(classes)), width=2)
        pen.text((6, 3), str(i), _FAINT, font)
        sheet.paste(tile, (x, y))
    return sheet


def as_pictures(scenes: Scenes) -> list[Image.Image]:
    """Each image with 256 levels: grey when it has one channel, else RGB."""
    pixels = (scenes.images * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    return [Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image) for image in pixels]


def colour(k: int, of: int) -> Colour:
    """A colour for class k of `of`, bright enough to be seen on a black image."""
    if of <= len(_BRIGHT):
        return _BRIGHT[k]
    red, green, blue = colorsys.hls_to_rgb(k * 0.61803399 % 1, 0.6, 0.9)  # neighbours a golden angle apart
    return round(255 * red), round(255 * green), round(255 * blue)


def _legend(
    classes: Sequence[str], font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int
) -> list[tuple[int, int]]:
    """Where each class stands: x in pixels and row, broken at `width`."""
    places, x, row = [], 0, 0
    for name in classes:
        needed = 22 + math.ceil(font.getlength(name)) + 22
        if x and x + needed > width:
            x, row = 0, row + 1
        places.append((x, row))
        x += needed
    return places
