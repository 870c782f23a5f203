"""8-bit RGB from image files of every mode that Pillow has.

An image is read as a viewer shows it:

- its EXIF orientation is applied (torchvision's ImageFolder and timm leave it out);
- what is transparent, by an alpha channel, a palette or a colour, lies on white;
- palettes are looked up, and CMYK, YCbCr, HSV and CIELAB are converted as Pillow does: of CMYK, red is
  (255 - C) (255 - K) / 255. Values of a CMYK JPEG are stored inverted, as Adobe's are;
- 16-bit grey is scaled from the range of the format, 0..65535, or 0..4095 in a TIFF of 12 bits. Of 16-bit colour
  Pillow keeps the high byte;
- ICC profiles and gamma are not applied.

Some images are refused, since there is no agreed way to show them: 32-bit and signed integers and floating point, whose
white no file names; several frames; and a transparent colour in PNGs of 2, 4 or 3 x 16 bits, which Pillow compares with
other values. Of a camera's JPEG (MPO) the first frame is the picture, the others are previews. So are images of more
than 67 million pixels: a file of some kilobytes may hold one that takes all memory.
"""

import contextlib
import warnings
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, TiffImagePlugin, UnidentifiedImageError

from raymu.errors import InputError

MOST_PIXELS = 2**26  # as of 8192 x 8192

SIXTEEN_BITS = ("I;16", "I;16B", "I;16L", "I;16N")
EIGHT_BITS = ("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "LAB", "HSV")
WIDE = {"I": "32-bit or signed integers", "F": "floating-point numbers"}

# What sets an image upright, by its EXIF orientation (CIPA DC-008, 4.6.4).
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def open_image(file: BinaryIO) -> Image.Image:
    """An image whose header is read, and no pixel yet.

    Raises:
        InputError: no image, or one that is refused by its header; the message says why.
        Exception: what Pillow raises where it is damaged: OSError, SyntaxError, ValueError, ...
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # an error follows
            image = Image.open(file)
    except UnidentifiedImageError as error:
        raise InputError("it is no image of a kind that Pillow knows") from error
    width, height = image.size
    if width * height > MOST_PIXELS:
        raise InputError(f"it has {width} x {height} pixels, and {MOST_PIXELS:,} are read at most")
    frames = getattr(image, "n_frames", 1)
    if frames > 1 and image.format != "MPO":
        raise InputError(f"it has {frames} frames; only still images are read")
    if image.mode == "I" and image.format in ("PNG", "PPM"):  # 16 bits, in the wider mode
        return image
    if image.mode in WIDE:
        raise InputError(f"its pixels are {WIDE[image.mode]} (mode {image.mode}), and no file says which one is white")
    if image.mode not in (*EIGHT_BITS, *SIXTEEN_BITS):
        raise InputError(f"its mode {image.mode} is not known")
    if 2 in getattr(image, "tag_v2", {}).get(TiffImagePlugin.SAMPLEFORMAT, ()):
        raise InputError("its pixels are signed integers, and no file says which one is white")
    if image.format == "PNG" and "transparency" in image.info and image.tile[0].args in ("L;2", "L;4", "RGB;16B"):
        raise InputError("it names a transparent colour in other than 8 bits, which Pillow does not scale")
    return image


def read_rgb(file: BinaryIO) -> Image.Image:
    """The image of mode RGB that a file shows. Raises what `open_image` does, also where pixels are damaged."""
    image = open_image(file)
    image.load()
    orientation = None
    with contextlib.suppress(Exception):  # EXIF data is often broken, in good images as well
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    shown = to_rgb(image)
    return shown.transpose(UPRIGHT[orientation]) if orientation in UPRIGHT else shown


def to_rgb(image: Image.Image) -> Image.Image:
    """The image in mode RGB, from any mode that is not refused."""
    if image.mode in SIXTEEN_BITS or image.mode == "I":
        return Image.fromarray(_grey(image)).convert("RGB")
    if not image.has_transparency_data:
        return image.convert("RGB")
    if image.mode == "La":  # Pillow knows no other way from it
        image = image.convert("LA")
    shown = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), shown).convert("RGB")


def _grey(image: Image.Image) -> NDArray[np.uint8]:
    """8-bit grey (H, W) of an image of 16 bits, rounded."""
    tags = getattr(image, "tag_v2", {})  # of a TIFF
    (bits,) = tags.get(TiffImagePlugin.BITSPERSAMPLE, (16,))
    white_is_zero = tags.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == 0
    values, white = np.asarray(image).astype(np.int32), 2**bits - 1
    grey = ((white - values if white_is_zero else values) * 255 + white // 2) // white
    return np.where(values == image.info.get("transparency", -1), 255, grey).astype(np.uint8)
