"""One image as received to one image to store: every failure of an image gets its class here."""

import io
import re
import warnings
from dataclasses import dataclass

import imagehash
import numpy as np
from PIL import Image

from pipeline.ledger import Unusable

MAX_PIXELS = 100_000_000
MAX_SIDE = 65_500  # what a JPEG can hold
JPEG_QUALITY = 95
# Named, because some of Pillow's other formats start programs (EPS) or are no photos.
FORMATS = ("JPEG", "PNG", "WEBP", "AVIF", "GIF", "BMP", "TIFF", "PPM")
ORIENTATION = 0x0112  # EXIF tag; from 5 on width and height are swapped
UPRIGHT = {  # what sets each orientation right
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
WHITE = (255, 255, 255)

# Pillow warns at its own limit and stops at twice that; MAX_PIXELS is checked here, before anything is decoded.
Image.MAX_IMAGE_PIXELS = None
# What Pillow warns of (damaged metadata) it passes over; a line for each of a million photos would hide the rest.
warnings.filterwarnings("ignore", module=r"PIL\.")


@dataclass(frozen=True)
class Picture:
    """An image to store: upright, 8-bit RGB or greyscale, short side at most store_side."""

    data: bytes
    suffix: str  # jpg | png
    size: tuple[int, int]  # width, height of `data`, in pixels
    received: tuple[int, int]  # as received, upright
    phash: str  # 64-bit perceptual hash of Zauner (2010), 16 hex digits
    notes: tuple[str, ...]


def prepare(data: bytes, min_side: int, store_side: int, max_pixels: int = MAX_PIXELS) -> Picture:
    """Check an image and bring it into the form in which it is stored.

    Bytes that are in this form already are kept as they are; the others become JPEGs of quality 95 at full chroma.

    Raises: Unusable with the class of the failure.
    """
    if not data:
        raise Unusable("empty_file", "0 bytes")
    image = _open(data)
    turned = 1 if image.format == "PNG" else _orientation(image)  # a PNG's may stand behind its pixels
    _check_size(_upright_size(image.size, turned), min_side, max_pixels)
    frames, pixels = _decode(image, data, turned)
    turned = _orientation(image)
    received = _upright_size(image.size, turned)
    notes = ("several frames, the first is used",) if frames else ()
    if not frames and turned == 1 and min(received) <= store_side and _is_plain(image, data):
        return Picture(data, _suffix(image), received, received, _phash(pixels), notes)
    stored = _shrink(_upright(pixels, turned), store_side)
    return Picture(_jpeg(stored), "jpg", stored.size, received, _phash(stored), notes)


def _open(data: bytes) -> Image.Image:
    """Reads the header only."""
    try:
        return Image.open(io.BytesIO(data), formats=FORMATS)
    except Exception as error:  # decoders raise whatever damaged bytes lead to; the sample is bad, not the program
        raise _failure(error, data) from error


def _orientation(image: Image.Image) -> int:
    """EXIF orientation, 1 to 8; a damaged note on how the camera was held is no reason to lose the photo."""
    try:
        turned = image.getexif().get(ORIENTATION, 1)
    except Exception:  # as in _open
        return 1
    return turned if turned in range(1, 9) else 1


def _upright_size(size: tuple[int, int], turned: int) -> tuple[int, int]:
    return size[::-1] if turned >= 5 else size


def _check_size(size: tuple[int, int], min_side: int, max_pixels: int) -> None:
    width, height = size
    if width * height > max_pixels or max(size) > MAX_SIDE:
        limit = f"{max_pixels} pixels and {MAX_SIDE} a side"
        raise Unusable("too_large", f"{width}x{height}, the limit is {limit}; not decoded", size)
    if min(size) < min_side:
        raise Unusable("too_small", f"{width}x{height}, min_side is {min_side}", size)


def _decode(image: Image.Image, data: bytes, turned: int) -> tuple[bool, Image.Image]:
    """Whether there are more frames than the first, and the first as RGB or greyscale."""
    try:
        frames = bool(getattr(image, "is_animated", False))
        image.load()
        return frames, _flatten(image)
    except Exception as error:  # as in _open
        raise _failure(error, data, _upright_size(image.size, turned)) from error


def _failure(error: Exception, data: bytes, size: tuple[int, int] | None = None) -> Unusable:
    if isinstance(error, Unusable):
        return error
    words = re.sub(r"\s+|<.* at 0x.*>", " ", f"{type(error).__name__}: {error}")[:200]  # an address differs every time
    if _is_cut(data) or "truncated" in str(error).lower():
        return Unusable("truncated", f"ends after {len(data)} bytes, before the image does ({words})", size)
    if isinstance(error, Image.UnidentifiedImageError) and not _has_magic(data):
        return Unusable("not_an_image", f"starts with {data[:16]!r}; known are {', '.join(FORMATS)}")
    return Unusable("decode_error", words, size)


def _is_cut(data: bytes) -> bool:
    """Whether a JPEG or PNG lacks its end mark."""
    if data.startswith(b"\xff\xd8\xff"):
        return b"\xff\xd9" not in data[-64:]
    return data.startswith(b"\x89PNG\r\n\x1a\n") and b"IEND" not in data[-64:]


def _has_magic(data: bytes) -> bool:
    return data.startswith((b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"II*\0", b"MM\0*")) or data[8:12] == b"WEBP"


def _is_plain(image: Image.Image, data: bytes) -> bool:
    """Whether the bytes can be stored as they are: an 8-bit RGB or greyscale JPEG or PNG."""
    if image.mode not in ("RGB", "L") or image.has_transparency_data:
        return False
    # Pillow reads 16-bit RGB PNGs as 8-bit ones, and widens 1- to 4-bit greys; byte 24 is the depth in the file.
    return image.format == "JPEG" or (image.format == "PNG" and data[24] == 8)


def _suffix(image: Image.Image) -> str:
    return "jpg" if image.format == "JPEG" else "png"


def _flatten(image: Image.Image) -> Image.Image:
    """Any mode to 8-bit RGB or greyscale; what is transparent becomes white."""
    if image.mode == "F":
        raise Unusable("decode_error", "32-bit float pixels have no known white; save it with 8 or 16 bits")
    if image.mode.startswith("I"):
        return _from_16_bit(image)
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, WHITE), layer).convert("RGB")
    return image.convert("L" if image.mode in ("1", "L") else "RGB")


def _from_16_bit(image: Image.Image) -> Image.Image:
    """0..65535 to 0..255, rounded. Pillow's own conversion clips at 255 instead."""
    values = np.clip(np.asarray(image).astype(np.int64), 0, 65535)
    return Image.fromarray(((values + 128) // 257).astype(np.uint8))


def _upright(image: Image.Image, turned: int) -> Image.Image:
    return image if turned == 1 else image.transpose(UPRIGHT[turned])


def _shrink(image: Image.Image, side: int) -> Image.Image:
    """Short side to `side` pixels if it is larger. Pillow's bicubic filter widens with the factor: it is antialiased."""
    short = min(image.size)
    if short <= side:
        return image
    width, height = (max(side, round(length * side / short)) for length in image.size)
    return image.resize((width, height), Image.Resampling.BICUBIC)


def _jpeg(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    return buffer.getvalue()


def _phash(image: Image.Image) -> str:
    return str(imagehash.phash(image))
