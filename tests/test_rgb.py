"""What raymu sees of an image file: every mode of Pillow, in files really written, against values computed by hand."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import PIL
import pytest
from packaging.version import Version
from PIL import Image

from raymu.data import published
from raymu.data.rgb import read_rgb, to_rgb
from raymu.errors import InputError


def file(image: Image.Image, form: str, **options: object) -> bytes:
    content = io.BytesIO()
    image.save(content, form, **options)
    return content.getvalue()


def row(mode: str, *pixels: object) -> Image.Image:
    image = Image.new(mode, (len(pixels), 1))
    for column, pixel in enumerate(pixels):
        image.putpixel((column, 0), pixel)
    return image


def tiff(pixels: bytes, width: int, bits: tuple[int, ...], photometric: int, **more: tuple[int, ...]) -> bytes:
    """A little-endian TIFF of one row, as TIFF 6.0 says: 8 bytes of header, the pixels, then the directory."""
    tags = {256: (width,), 257: (1,), 258: bits, 259: (1,), 262: (photometric,), 273: (8,), 277: (len(bits),)}
    tags |= {278: (1,), 279: (len(pixels),)} | {int(name.removeprefix("tag")): values for name, values in more.items()}
    pixels += b"\0" * (len(pixels) % 2)
    start = 8 + len(pixels)
    beyond = start + 2 + 12 * len(tags) + 4
    entries, rest = b"", b""
    for tag, values in sorted(tags.items()):
        packed = struct.pack(f"<{len(values)}H", *values)
        if len(packed) > 4:
            packed, rest = struct.pack("<I", beyond + len(rest)), rest + packed
        entries += struct.pack("<HHI", tag, 3, len(values)) + packed.ljust(4, b"\0")
    return struct.pack("<2sHI", b"II", 42, start) + pixels + struct.pack("<H", len(tags)) + entries + bytes(4) + rest


def png(pixels: bytes, width: int, bits: int, colour: int, *chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG of one row, as its specification says."""
    header = struct.pack(">IIBBBBB", width, 1, bits, colour, 0, 0, 0)
    content = b"\x89PNG\r\n\x1a\n"
    for kind, body in ((b"IHDR", header), *chunks, (b"IDAT", zlib.compress(b"\0" + pixels)), (b"IEND", b"")):
        content += struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
    return content


def grey(*values: int) -> list[tuple[int, int, int]]:
    return [(value, value, value) for value in values]


def palette() -> Image.Image:
    image = row("P", 0, 1, 2)
    image.putpalette([10, 20, 30, 200, 100, 0, 1, 2, 3])
    return image


WHITE, BIG = (255, 255, 255), np.array([300, 32768, 65535, 0])
BIG_GREY = grey(1, 128, 255, 0)  # 300 / 257 = 1.17, 32768 / 257 = 127.5019
TRANSPARENT_LA = [(100, 255), (100, 0), (0, 51)]  # 0.2 of black on white
OLD = pytest.mark.skipif(Version(PIL.__version__).major < 13, reason="Pillow before 13 does not read such a TIFF")
EXACT = {
    "1": (file(row("1", 0, 255), "PNG"), grey(0, 255)),
    "L": (file(row("L", 0, 77, 255), "PNG"), grey(0, 77, 255)),
    "LA": (file(row("LA", *TRANSPARENT_LA), "PNG"), grey(100, 255, 204)),
    "La: multiplied by its alpha": (
        tiff(bytes([100, 255, 0, 0, 20, 51]), 3, (8, 8), 1, tag338=(1,)),
        grey(100, 255, 224),
    ),
    "P": (file(palette(), "PNG"), [(10, 20, 30), (200, 100, 0), (1, 2, 3)]),
    "P with an alpha each": (
        file(palette(), "PNG", transparency=bytes([255, 0, 51])),
        [(10, 20, 30), WHITE, (204, 204, 205)],  # 0.2 of it, 0.8 of 255
    ),
    "P with a transparent colour": (file(palette(), "GIF", transparency=1), [(10, 20, 30), WHITE, (1, 2, 3)]),
    "PA": (
        tiff(bytes([7, 255, 1, 0]), 2, (8, 8), 3, tag338=(2,), tag320=(257 * 40,) * 256 + (257 * 5,) * 512),
        [(40, 5, 5), WHITE],
    ),
    "RGB": (file(row("RGB", (1, 2, 3), (255, 0, 128)), "PNG"), [(1, 2, 3), (255, 0, 128)]),
    "RGB with a transparent colour": (
        file(row("RGB", (1, 2, 3), (9, 9, 9)), "PNG", transparency=(1, 2, 3)),
        [WHITE, (9, 9, 9)],
    ),
    "RGBA": (
        file(row("RGBA", (1, 2, 3, 255), (1, 2, 3, 0), (255, 0, 5, 51)), "PNG"),
        [(1, 2, 3), WHITE, (255, 204, 205)],
    ),
    "RGBa: multiplied by its alpha": (
        tiff(bytes([1, 2, 3, 255, 0, 0, 0, 0, 51, 0, 1, 51]), 3, (8, 8, 8, 8), 2, tag338=(1,)),
        [(1, 2, 3), WHITE, (255, 204, 205)],
    ),
    "RGBX": (tiff(bytes([1, 2, 3, 0, 7, 8, 9, 255]), 2, (8, 8, 8, 8), 2, tag338=(0,)), [(1, 2, 3), (7, 8, 9)]),
    "CMYK": (  # (255 - C) (255 - K) / 255
        file(row("CMYK", (0, 0, 0, 0), (255, 0, 0, 0), (0, 102, 255, 51), (0, 0, 0, 255)), "TIFF"),
        [WHITE, (0, 255, 255), (204, 122, 0), (0, 0, 0)],
    ),
    "I of a PGM": (b"P5 4 1 65535\n" + BIG.astype(">u2").tobytes(), BIG_GREY),
    "I of a PGM of 10 bits": (b"P5 2 1 1023\n" + struct.pack(">2H", 512, 1023), grey(128, 255)),
    "I;16": (file(Image.fromarray(BIG.astype(np.uint16)[None]), "PNG"), BIG_GREY),
    "I;16 of a TIFF": (tiff(BIG.astype("<u2").tobytes(), 4, (16,), 1), BIG_GREY),
    "I;16 where 0 is white": (tiff(BIG.astype("<u2").tobytes(), 4, (16,), 0), grey(254, 127, 0, 255)),
    "I;16 of 12 bits": (tiff(bytes([0xFF, 0xF8, 0x00, 0x00, 0x10]), 3, (12,), 1), grey(255, 128, 0)),  # fff 800 001
    "I;16 with a transparent value": (
        png(BIG.astype(">u2").tobytes(), 4, 16, 0, (b"tRNS", struct.pack(">H", 300))),
        grey(255, 128, 255, 0),
    ),
    "I;16L": (file(Image.frombytes("I;16L", (4, 1), BIG.astype("<u2").tobytes()), "TIFF"), BIG_GREY),
    "I;16B": (file(Image.frombytes("I;16B", (4, 1), BIG.astype(">u2").tobytes()), "TIFF"), BIG_GREY),
    "RGB of 16 bits": (
        png(np.array([300, 32768, 65535], ">u2").tobytes(), 1, 16, 2),
        [(1, 128, 255)],
    ),
    "RGBA of 16 bits": (
        png(np.array([[300, 32768, 65535, 65535], [0, 0, 0, 0]], ">u2").tobytes(), 2, 16, 6),
        [(1, 128, 255), WHITE],
    ),
    "LA of 16 bits": (png(np.array([[300, 65535], [0, 0]], ">u2").tobytes(), 2, 16, 4), grey(1, 255)),
    "BMP": (file(row("RGB", (1, 2, 3)), "BMP"), [(1, 2, 3)]),
    "PPM of 4 bits": (b"P6 1 1 15\n" + bytes([0, 8, 15]), [(0, 136, 255)]),
    "WebP with alpha": (file(row("RGBA", (1, 2, 3, 255), (1, 2, 3, 0)), "WEBP", lossless=True), [(1, 2, 3), WHITE]),
}


def shown(content: bytes) -> np.ndarray:
    image = read_rgb(io.BytesIO(content))
    assert image.mode == "RGB"
    return np.asarray(image)


@pytest.mark.parametrize("mode", [pytest.param(mode, marks=OLD if mode[:2] == "La" else ()) for mode in EXACT])
def test_every_mode_is_converted_as_its_range_says(mode) -> None:
    content, expected = EXACT[mode]
    assert [tuple(pixel) for pixel in shown(content)[0].tolist()] == expected


def test_modes_that_no_file_has() -> None:
    """Pillow makes them of other images."""
    native = Image.frombytes("I;16N", (4, 1), BIG.astype("=u2").tobytes())
    assert [tuple(pixel) for pixel in np.asarray(to_rgb(native))[0].tolist()] == BIG_GREY
    hsv = row("HSV", (0, 255, 255), (170, 255, 255), (0, 0, 100))  # hue 0 of 255: red; 170 of 255 = 240 degrees: blue
    assert np.asarray(to_rgb(hsv))[0].tolist() == [[255, 0, 0], [0, 0, 255], [100, 100, 100]]


@OLD
def test_colour_spaces_within_rounding() -> None:
    """YCbCr by JFIF's formula; CIELAB of white, mid grey and sRGB's red, as published for D50."""
    luma, blue, red = 100, 90, 200
    expected = [
        luma + 1.402 * (red - 128),
        luma - 0.344136 * (blue - 128) - 0.714136 * (red - 128),
        luma + 1.772 * (blue - 128),
    ]
    np.testing.assert_allclose(shown(file(row("YCbCr", (luma, blue, red)), "TIFF"))[0, 0], expected, atol=1.5)
    lab = [(255, 0, 0), (round(50 * 2.55), 0, 0), (round(54.29 * 2.55), 81, 70)]
    content = tiff(bytes([value for pixel in lab for value in pixel]), 3, (8, 8, 8), 8)
    np.testing.assert_allclose(shown(content)[0], [WHITE, (119, 119, 119), (255, 0, 0)], atol=6)


def test_a_cmyk_jpeg_is_inverted_as_adobe_stores_it() -> None:
    content = file(Image.new("CMYK", (16, 16), (0, 102, 255, 51)), "JPEG", quality=100)
    assert b"Adobe" in content
    np.testing.assert_allclose(shown(content)[8, 8], (204, 122.4, 0), atol=2)


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
@pytest.mark.parametrize("form", ["JPEG", "PNG"])
def test_plain_images_are_what_pillow_makes_of_them(mode, form) -> None:
    """To the bit; as all loaders of the field read them."""
    noise = np.random.default_rng(0).integers(0, 256, (40, 30, 3), dtype=np.uint8)
    image = Image.fromarray(noise).convert(mode if form == "JPEG" else mode.replace("CMYK", "P"))
    content = file(image, form)
    np.testing.assert_array_equal(shown(content), np.asarray(Image.open(io.BytesIO(content)).convert("RGB")))


# What a picture looks like, by EXIF 2.3, where row 0 and column 0 of the stored one are seen.
ORIENTATIONS = {
    1: lambda stored: stored,
    2: lambda stored: stored[:, ::-1],
    3: lambda stored: stored[::-1, ::-1],
    4: lambda stored: stored[::-1],
    5: lambda stored: stored.swapaxes(0, 1),
    6: lambda stored: stored.swapaxes(0, 1)[:, ::-1],  # row 0 is the right-hand side
    7: lambda stored: stored[::-1, ::-1].swapaxes(0, 1),
    8: lambda stored: stored.swapaxes(0, 1)[::-1],  # row 0 is the left-hand side, column 0 the bottom
}


@pytest.mark.parametrize("form", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_an_image_is_set_upright(form, orientation) -> None:
    stored = np.zeros((16, 32, 3), np.uint8)
    stored[:8, :16] = 255
    stored[:8, 16:, 0] = 255
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"JPEG": {"quality": 100, "subsampling": 0}, "WEBP": {"lossless": True}}.get(form, {})
    content = file(Image.fromarray(stored), form, exif=exif, **options)
    expected = ORIENTATIONS[orientation](stored)
    assert expected.shape == shown(content).shape
    np.testing.assert_allclose(shown(content).astype(int), expected, atol=4 if form == "JPEG" else 0)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
@pytest.mark.parametrize("exif", [b"Exif\0\0", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0no TIFF at all", b"no"])
def test_broken_exif_data_keeps_no_image_from_being_read(exif) -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8))
    np.testing.assert_array_equal(shown(file(image, "JPEG", exif=exif)), shown(file(image, "JPEG")))


def test_the_picture_of_a_camera_is_the_first_of_its_file() -> None:
    """An MPO: a JPEG that previews follow."""
    first, preview = Image.new("RGB", (16, 16), "red"), Image.new("RGB", (16, 16), "blue")
    content = file(first, "MPO", save_all=True, append_images=[preview])
    assert Image.open(io.BytesIO(content)).n_frames == 2
    np.testing.assert_allclose(shown(content)[8, 8], (255, 0, 0), atol=2)


def animated(form: str) -> bytes:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue", "green")]
    return file(frames[0], form, save_all=True, append_images=frames[1:])


REFUSED = {
    "F": (file(row("F", 0.5), "TIFF"), r"floating-point numbers \(mode F\)"),
    "F of a PFM": (b"Pf\n1 1\n-1.0\n" + struct.pack("<f", 0.5), r"floating-point numbers \(mode F\)"),
    "I": (file(row("I", 70000), "TIFF"), r"32-bit or signed integers \(mode I\)"),
    "signed 16 bits": (tiff(struct.pack("<h", -5), 1, (16,), 1, tag339=(2,)), r"signed integers \(mode I\)"),
    "signed 8 bits": (tiff(struct.pack("<b", -5), 1, (8,), 1, tag339=(2,)), "signed integers"),
    "animated GIF": (animated("GIF"), "it has 3 frames"),
    "animated PNG": (animated("PNG"), "it has 3 frames"),
    "animated WebP": (animated("WEBP"), "it has 3 frames"),
    "TIFF of several pages": (animated("TIFF"), "it has 3 frames"),
    "a transparent colour of 16 bits": (
        png(struct.pack(">3H", 1, 2, 3), 1, 16, 2, (b"tRNS", struct.pack(">3H", 1, 2, 3))),
        "transparent colour",
    ),
    "a transparent grey of 4 bits": (png(b"\x10", 1, 4, 0, (b"tRNS", struct.pack(">H", 1))), "transparent colour"),
}


@pytest.mark.parametrize("mode", REFUSED)
def test_what_nobody_knows_how_to_show_is_refused_by_name(mode) -> None:
    content, message = REFUSED[mode]
    with pytest.raises(InputError, match=message):
        read_rgb(io.BytesIO(content))


def test_pixels_of_a_dataset_are_read_alike(tmp_path: Path) -> None:
    """Those that are converted once, too."""
    good, bad, odd = tmp_path / "good.png", tmp_path / "bad.tif", tmp_path / "odd.png"
    good.write_bytes(file(Image.fromarray(BIG.astype(np.uint16).reshape(2, 2)), "PNG"))
    bad.write_bytes(REFUSED["F"][0])
    odd.write_bytes(EXACT["I;16"][0])
    assert published._pixels(good, 2).tolist() == [[[1, 128], [255, 0]]] * 3
    with pytest.raises(InputError, match=r"bad\.tif cannot be read: its pixels are floating-point"):
        published._pixels(bad, 1)
    with pytest.raises(InputError, match=r"odd\.png has 4 x 1 pixels instead of 2 x 2"):
        published._pixels(odd, 2)
