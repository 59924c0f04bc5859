"""Draws scenes side by side in one picture, with their true boxes and class numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from PIL import Image, ImageDraw, ImageFont

from objbench.scenes import Scenes

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

_TILE = 256  # pixels along the longer side of an image; less if the zoom must be rounded down to an integer
_GAP, _MARGIN, _FONT = 8, 20, 17
_INK, _FAINT, _PAPER = (32, 32, 36), (120, 120, 128), (250, 250, 248)
_TAG_FONT = 12


def contact_sheet(scenes: Scenes, classes: Sequence[str], title: str) -> Image.Image:
    """All `scenes` in rows under a title and a legend of the classes. Images have 1 or 3 channels.

    Classes are marked with numbers, not colours: any colour but blue beside "blue triangle" would confuse.
    """
    pictures = as_pictures(scenes)
    width, height = pictures[0].size
    zoom = max(1, _TILE // max(width, height))
    tile_w, tile_h = width * zoom, height * zoom
    columns = max(math.sqrt(len(pictures) * 1.5 * tile_h / tile_w), 512 / tile_w)  # a sheet of about 3:2
    rows = math.ceil(len(pictures) / math.ceil(columns))
    columns = math.ceil(len(pictures) / rows)  # so that the last row is as full as possible
    font, bold, tag = (ImageFont.load_default(size) for size in (_FONT, _FONT + 5, _TAG_FONT))
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
        after = _tag(draw, x, y, k, tag)
        draw.text((after + 6, y - 3), classes[k], _INK, font)

    for i, picture in enumerate(pictures):
        x, y = _MARGIN + i % columns * (tile_w + _GAP), top + i // columns * (tile_h + _GAP)
        here = scenes.truth.image == i
        tile = picture.convert("RGB").resize((tile_w, tile_h), Image.Resampling.NEAREST)
        pen = ImageDraw.Draw(tile)
        boxes = (scenes.truth.boxes[here] * zoom).tolist()
        for x0, y0, x1, y1 in boxes:
            pen.rectangle((x0 - 2, y0 - 2, x1 + 1, y1 + 1), outline=_INK)  # visible on a bright background
            pen.rectangle((x0 - 1, y0 - 1, x1, y1), outline=_PAPER)  # visible on a dark one
        for (x0, y0, _, _), label in zip(boxes, scenes.truth.labels[here].tolist(), strict=True):
            _tag(pen, max(0, round(x0) - 1), max(0, round(y0) - 1), label, tag)
        pen.text((6, 3), str(i), _FAINT, font)
        sheet.paste(tile, (x, y))
    return sheet


def as_pictures(scenes: Scenes) -> list[Image.Image]:
    """Each image with 8 bits per value: grey for one channel, else RGB."""
    pixels = (scenes.images * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    return [Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image) for image in pixels]


def _tag(draw: ImageDraw.ImageDraw, x: int, y: int, number: int, font: Font) -> int:
    """Draws a class number in a frame with its upper left corner at (x, y); returns the x where the frame ends."""
    right = x + math.ceil(font.getlength(str(number))) + 5
    draw.rectangle((x, y, right, y + _TAG_FONT + 2), fill=_PAPER, outline=_INK)
    draw.text((x + 3, y), str(number), _INK, font)
    return right


def _legend(classes: Sequence[str], font: Font, width: int) -> list[tuple[int, int]]:
    """The place of each class name: x in pixels, and row; a new row begins at `width`."""
    places, x, row = [], 0, 0
    for name in classes:
        needed = 32 + math.ceil(font.getlength(name)) + 22
        if x and x + needed > width:
            x, row = 0, row + 1
        places.append((x, row))
        x += needed
    return places
