"""The reader of pictures: every mode shows what it shows elsewhere; what is broken is named."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from fuzzing import fuzz
from objbench import images
from objbench.errors import UsageError
from objbench.images import Picture, colour, files_in, joined_by_name, read_picture, read_size, with_channels

DRAW = np.random.default_rng(0)
COLOURED = DRAW.integers(0, 256, (8, 6, 3)).astype(np.uint8)
GREY = COLOURED[..., 0]


def png(
    raw: bytes, size: tuple[int, int] = (6, 8), depth: int = 8, kind: int = 0, more: bytes = b""
) -> bytes:
    """A PNG file of these scan lines; size is width, height. more: chunks before the pixels."""
    head = struct.pack(">IIBBBBB", *size, depth, kind, 0, 0, 0)
    body = chunk(b"IHDR", head) + more + chunk(b"IDAT", zlib.compress(raw)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def saved(image: Image.Image, file: Path, **more: object) -> Path:
    image.save(file, **more)
    return file


def lines(pixels: np.ndarray) -> bytes:
    """Scan lines of a PNG, unfiltered."""
    return b"".join(b"\0" + row.tobytes() for row in pixels)


def test_grey_and_colour_are_what_they_are(tmp_path: Path) -> None:
    grey = read_picture(saved(Image.fromarray(GREY), tmp_path / "g.png"))
    assert (grey.pixels.dtype, grey.pixels.shape, grey.turned) == (np.uint8, (8, 6, 1), False)
    assert (grey.pixels[..., 0] == GREY).all()
    assert (read_picture(saved(Image.fromarray(COLOURED), tmp_path / "c.png")).pixels == COLOURED).all()


def test_sixteen_bits_show_what_eight_do(tmp_path: Path) -> None:
    deep = tmp_path / "deep.png"
    deep.write_bytes(png(lines((GREY.astype(np.uint16) * 257).astype(">u2")), depth=16))
    assert (read_picture(deep).pixels[..., 0] == GREY).all()
    deep.write_bytes(png(lines((COLOURED.astype(np.uint16) * 257).astype(">u2")), depth=16, kind=2))
    assert (read_picture(deep).pixels == COLOURED).all()
    between = np.array([[0, 128, 129, 32768, 65406, 65535]] * 8, ">u2")
    deep.write_bytes(png(lines(between), depth=16))
    assert read_picture(deep).pixels[0, :, 0].tolist() == [0, 0, 1, 128, 254, 255]
    deep.write_bytes(png(lines(GREY.astype(">u2")), depth=16))
    with pytest.raises(UsageError, match=r"deep\.png: has 16 bits per value, but no value above \d+, so"):
        read_picture(deep)
    deep.write_bytes(png(lines(np.zeros((8, 6), ">u2")), depth=16))
    assert not read_picture(deep).pixels.any()


def test_one_bit_and_palettes(tmp_path: Path) -> None:
    bits = read_picture(saved(Image.fromarray(GREY > 127), tmp_path / "b.png"))
    assert (bits.pixels[..., 0] == 255 * (GREY > 127)).all()
    palette = Image.fromarray(COLOURED).quantize(64)
    shown = np.asarray(palette.convert("RGB"))
    assert (read_picture(saved(palette, tmp_path / "p.png")).pixels == shown).all()


def test_cmyk_is_colour(tmp_path: Path) -> None:
    flat = Image.new("RGB", (16, 16), (200, 40, 90))
    file = saved(flat.convert("CMYK"), tmp_path / "c.jpg", quality=100)
    assert Image.open(file).mode == "CMYK"
    assert np.abs(read_picture(file).pixels.astype(int) - [200, 40, 90]).max() < 6


def test_what_is_transparent_shows_what_is_behind(tmp_path: Path) -> None:
    half = np.dstack([COLOURED, np.where(GREY > 127, 255, 0).astype(np.uint8)])
    file = saved(Image.fromarray(half, "RGBA"), tmp_path / "a.png")
    seen = (GREY > 127)[..., None]
    assert (read_picture(file).pixels == np.where(seen, COLOURED, 0)).all()
    assert (read_picture(file, colour("#ff8000")).pixels == np.where(seen, COLOURED, [255, 128, 0])).all()
    both = saved(Image.fromarray(np.dstack([GREY, half[..., 3]]), "LA"), tmp_path / "la.png")
    assert (read_picture(both).pixels == np.where(seen, GREY[..., None], 0)).all()
    assert read_picture(both, (9, 9, 9)).pixels.shape == (8, 6, 1)
    assert read_picture(both, (9, 9, 8)).pixels.shape == (8, 6, 3)
    veil = saved(Image.new("RGBA", (2, 2), (200, 100, 0, 128)), tmp_path / "v.png")
    assert np.abs(read_picture(veil, (255, 255, 255)).pixels[0, 0].astype(int) - [227, 177, 127]).max() <= 1
    # one value or one entry of the palette may be declared transparent
    keyed = tmp_path / "key.png"
    keyed.write_bytes(png(lines(GREY), more=chunk(b"tRNS", struct.pack(">H", int(GREY[0, 0])))))
    shown = read_picture(keyed).pixels[..., 0]
    assert shown[0, 0] == 0
    assert (shown == np.where(GREY[0, 0] == GREY, 0, GREY)).all()
    palette = Image.fromarray(np.array([[0, 1], [1, 0]], np.uint8), "P")
    palette.putpalette([10, 20, 30, 40, 50, 60])
    clear = saved(palette, tmp_path / "clear.png", transparency=1)
    assert read_picture(clear, (7, 7, 7)).pixels.tolist() == [
        [[10, 20, 30], [7] * 3],
        [[7] * 3, [10, 20, 30]],
    ]


def test_every_turn_of_exif_is_applied_and_said(tmp_path: Path) -> None:
    for suffix in ("png", "jpg"):
        for orientation in range(1, 9):
            image = Image.fromarray(COLOURED.repeat(8, 0).repeat(8, 1))
            exif = image.getexif()
            exif[0x0112] = orientation
            file = saved(image, tmp_path / f"{orientation}.{suffix}", exif=exif, quality=95)
            picture = read_picture(file)
            assert picture.turned is (orientation > 1)
            upright = np.rot90(np.asarray(Image.open(file)), {3: 2, 6: -1, 8: 1}.get(orientation, 0))
            if orientation in (1, 3, 6, 8):
                assert (picture.pixels == upright).all()
            assert read_size(file) == picture.pixels.shape[1::-1]
            assert read_size(file) == ((64, 48) if orientation > 4 else (48, 64))


def test_channels(tmp_path: Path) -> None:
    grey = Picture(GREY[..., None], False)
    wide = with_channels(grey, 3)
    assert wide is not None
    assert (wide == GREY[..., None]).all()
    again = with_channels(Picture(wide, False), 1)
    assert again is not None
    assert (again == grey.pixels).all()
    assert with_channels(Picture(COLOURED, False), 1) is None


def test_what_is_broken_is_named_in_a_line(tmp_path: Path) -> None:
    whole = png(lines(GREY))
    broken = {
        "empty": b"",
        "text": b"no picture",
        "cut": whole[:-30],
        "altered": whole.replace(b"IDAT", b"IDAS"),
        "chunk": whole[:41] + b"\xff" + whole[42:],
        "none": png(b"", (0, 0)),
        "gif": b"GIF89a" + whole,
        "bomb": png(b"", (60_000, 60_000)),
        "large": png(b"", (10_000, 10_000)),
    }
    for name, data in broken.items():
        (tmp_path / f"{name}.png").write_bytes(data)
        with pytest.raises(UsageError) as error:
            read_picture(tmp_path / f"{name}.png")
        assert str(error.value).startswith(f"{tmp_path / name}.png: cannot be read as an image"), name
        assert "\n" not in str(error.value)
    with pytest.raises(UsageError, match=r"bomb\.png: .* it claims to have more than 89,478,485 pixels"):
        read_size(tmp_path / "bomb.png")
    with pytest.raises(UsageError, match=r"gone\.png: there is no such file"):
        read_picture(tmp_path / "gone.png")
    with pytest.raises(UsageError, match=r"'bluish' is no colour; write it as #rrggbb"):
        colour("bluish")


def test_files_of_a_folder(tmp_path: Path) -> None:
    for name in (
        "b.PNG",
        "a.jpg",
        "c.JPEG",
        "._a.png",
        ".b.png",
        "notes.txt",
        "d.bmp",
        "a.rot.png",
        "a-1.png",
    ):
        (tmp_path / name).touch()
    (tmp_path / "z.png").symlink_to("nothing")
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "zz.png").symlink_to("folder.png")
    (tmp_path / "folder.png" / "x.png").touch()
    (tmp_path / ".hidden").mkdir()
    (tmp_path / ".hidden" / "y.png").touch()
    first = ["a.jpg", "a-1.png", "a.rot.png", "b.PNG", "c.JPEG", "z.png"]
    assert [path.name for path in files_in(tmp_path, images.SUFFIXES)] == first
    assert [path.name for path in files_in(tmp_path, images.SUFFIXES, below=True)] == [*first, "x.png"]
    with pytest.raises(UsageError, match=r"z\.png: is a link to a file that does not exist"):
        read_picture(tmp_path / "z.png")
    with pytest.raises(UsageError, match=r"cannot read .*none: No such file"):
        files_in(tmp_path / "none", images.SUFFIXES)


def test_files_are_joined_by_name(tmp_path: Path) -> None:
    """In a list of names with suffixes, 000.png and 000.rot90.png stand in one order, their texts in another."""
    (tmp_path / "p").mkdir()
    (tmp_path / "t").mkdir()
    stems = ["000", "000.rot90", "001"]
    for stem in stems:
        (tmp_path / "p" / f"{stem}.png").touch()
        (tmp_path / "t" / f"{stem}.txt").touch()

    def joined() -> list[tuple[str, str]]:
        pictures, texts = files_in(tmp_path / "p", images.SUFFIXES), files_in(tmp_path / "t", [".txt"])
        return [(a.name, b.name) for a, b in joined_by_name(pictures, texts, "here")]

    assert joined() == [(f"{stem}.png", f"{stem}.txt") for stem in stems]
    (tmp_path / "p" / "001.jpg").touch()
    with pytest.raises(UsageError, match=r"p: 001\.jpg and 001\.png have the same name"):
        joined()
    (tmp_path / "p" / "001.png").unlink()
    assert joined()[-1] == ("001.jpg", "001.txt")
    (tmp_path / "t" / "001.txt").unlink()
    with pytest.raises(UsageError, match=r"here: '001' is in only one of p and t \(3 and 2 files\)"):
        joined()


def _seeds() -> list[bytes]:
    import io

    found = [png(lines(GREY)), png(lines(GREY.astype(">u2") * 200), depth=16)]
    image = Image.fromarray(COLOURED)
    exif = image.getexif()
    exif[0x0112] = 6
    for kind, more in (
        ("PNG", {}),
        ("PNG", {"exif": exif}),
        ("JPEG", {"exif": exif}),
        ("JPEG", {"progressive": True}),
    ):
        file = io.BytesIO()
        image.save(file, kind, **more)
        found.append(file.getvalue())
    palette = io.BytesIO()
    image.quantize(16).save(palette, "PNG", transparency=bytes(range(16)))
    return [*found, palette.getvalue()]


SEEDS = _seeds()


@fuzz
@given(st.sampled_from(SEEDS), st.data())
def test_any_bytes_are_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, whole: bytes, data: st.DataObject
) -> None:
    """Files with some bytes altered, gone or more; where asked, their PNG checksums are put right again."""
    altered = bytearray(whole)
    for _ in range(data.draw(st.integers(0, 4))):
        place = data.draw(st.integers(0, max(len(altered) - 1, 0)))
        what = data.draw(st.binary(max_size=4))
        altered[place : place + data.draw(st.integers(0, 4))] = what
    file = tmp_path_factory.getbasetemp() / "fuzz.png"
    file.write_bytes(with_checksums(bytes(altered)) if data.draw(st.booleans()) else bytes(altered))
    try:
        picture = read_picture(file)
        width, height = read_size(file)
    except UsageError as error:
        said = str(error)
    else:
        said = str(file)
        assert picture.pixels.dtype == np.uint8
        assert picture.pixels.shape in ((height, width, 1), (height, width, 3))
    assert said.startswith(str(file))
    assert "\n" not in said


def with_checksums(data: bytes) -> bytes:
    """A PNG whose chunks have the checksums that belong to them, as far as it can be taken for one."""
    out, place = data[:8], 8
    while place + 8 <= len(data):
        (length,) = struct.unpack(">I", data[place : place + 4])
        body = data[place + 8 : place + 8 + length]
        out += chunk(data[place + 4 : place + 8], body)
        place += 12 + length
    return out
