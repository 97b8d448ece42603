import io
import struct
import zlib

import imagehash
import numpy as np
import pytest
from PIL import Image

from pipeline.ledger import Unusable
from pipeline.sources.images import prepare

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL.TiffImagePlugin")

# What a camera held that way does to an upright picture, from the EXIF standard's table of rows and columns.
HELD = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


def stored(picture):
    return Image.open(io.BytesIO(picture.data))


def close_to(picture, wanted, tolerance=6):
    got = np.asarray(stored(picture).convert("RGB"), float)
    return np.abs(got - np.asarray(wanted.convert("RGB"), float)).mean() < tolerance


def failure(data, min_side=16, store_side=64, **limits):
    with pytest.raises(Unusable) as caught:
        prepare(data, min_side, store_side, **limits)
    return caught.value


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width, height, depth, colour, pixels, *more):
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    body = b"".join(more) + chunk(b"IDAT", zlib.compress(pixels)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + body


@pytest.mark.parametrize(("kind", "mode"), [("JPEG", "RGB"), ("JPEG", "L"), ("PNG", "RGB"), ("PNG", "L")])
def test_a_plain_image_keeps_its_bytes(make, kind, mode):
    image = make.photo().convert(mode)
    data = make.encoded(image, kind)
    picture = prepare(data, 16, 64)
    assert (picture.data, picture.suffix) == (data, kind[:3].lower().replace("jpe", "jpg"))
    assert picture.size == picture.received == (48, 40)
    assert picture.phash == str(imagehash.phash(Image.open(io.BytesIO(data))))
    assert picture.notes == ()


def test_a_large_image_is_shrunk_to_the_short_side(make):
    picture = prepare(make.encoded(make.photo(width=301, height=200), "PNG"), 16, 64)
    assert picture.received == (301, 200)
    assert picture.size == stored(picture).size == (96, 64)
    wanted = make.photo(width=301, height=200).resize((96, 64), Image.Resampling.BICUBIC)
    assert np.abs(np.asarray(stored(picture), float) - np.asarray(wanted, float)).mean() < 2


def test_shrinking_is_antialiased():
    stripes = np.zeros((256, 256), np.uint8)
    stripes[:, ::2] = 255
    buffer = io.BytesIO()
    Image.fromarray(stripes).save(buffer, "PNG")
    pixels = np.asarray(stored(prepare(buffer.getvalue(), 16, 32)), float)
    assert np.abs(pixels[4:-4, 4:-4] - 127.5).max() < 6


def test_an_image_that_is_reencoded_keeps_full_chroma(make):
    picture = prepare(make.encoded(make.photo(width=200, height=200), "PNG"), 16, 64)
    assert [layer[1:3] for layer in stored(picture).layer] == [(1, 1)] * 3


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_exif_orientation_is_applied(make, orientation, kind):
    upright = make.photo()
    held = upright if orientation == 1 else upright.transpose(HELD[orientation])
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture = prepare(make.encoded(held, kind, exif=exif), 16, 64)
    assert picture.received == picture.size == (48, 40)
    assert close_to(picture, upright)
    assert stored(picture).getexif().get(0x0112, 1) == 1


def test_a_png_with_orientation_behind_its_pixels_is_set_right(make):
    exif = Image.Exif()
    exif[0x0112] = 6
    data = make.encoded(make.photo(), "PNG")
    behind = data[:-12] + chunk(b"eXIf", exif.tobytes()[6:]) + data[-12:]
    assert prepare(behind, 16, 64).received == (40, 48)


@pytest.mark.parametrize("exif", [b"Exif\0\0no TIFF header", b"Exif\0\0II+\0\x08\0\0\0", b"Exif\0\0II*\0\xff\xff\xff\xff"])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_damaged_exif_does_not_cost_the_photo(make, kind, exif):
    data = make.encoded(make.photo(), kind, exif=exif)
    assert prepare(data, 16, 64).size == (48, 40)


def test_cmyk(make):
    picture = prepare(make.encoded(make.photo().convert("CMYK")), 16, 64)
    assert stored(picture).mode == "RGB"
    assert close_to(picture, make.photo())


def test_16_bit_grey_is_scaled_and_not_clipped():
    ramp = np.linspace(0, 65535, 64 * 64).reshape(64, 64)
    data = png(64, 64, 16, 0, b"".join(b"\0" + row.astype(">u2").tobytes() for row in ramp))
    picture = prepare(data, 16, 64)
    assert stored(picture).mode == "L"
    assert np.abs(np.asarray(stored(picture), float) - ramp / 257).max() < 3


def test_16_bit_rgb_becomes_8_bit(make):
    wide = np.asarray(make.photo()).astype(">u2") * 257
    data = png(48, 40, 16, 2, b"".join(b"\0" + row.tobytes() for row in wide))
    picture = prepare(data, 16, 64)
    assert picture.suffix == "jpg"
    assert close_to(picture, make.photo())


@pytest.mark.parametrize("mode", ["1", "P"])
def test_palette_and_bilevel(make, mode):
    image = make.photo().convert(mode)
    picture = prepare(make.encoded(image, "PNG"), 16, 64)
    assert stored(picture).mode == {"1": "L", "P": "RGB"}[mode]
    assert close_to(picture, image, 12)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "RGB", "L"])
def test_what_is_transparent_becomes_white(make, mode):
    image, options = make.photo().convert("RGBA"), {}
    image.paste((255, 0, 0, 0), (0, 0, 24, 40))
    if mode == "P":
        image = Image.new("P", (48, 40), 1)
        image.putpalette([255, 0, 0, 0, 0, 255])
        image.paste(0, (0, 0, 24, 40))
        options = {"transparency": 0}
    elif mode in ("RGB", "L"):
        image = Image.new(mode, (48, 40), 0)
        image.paste("white" if mode == "L" else "red", (24, 0, 48, 40))
        options = {"transparency": 0 if mode == "L" else (0, 0, 0)}
    else:
        image = image.convert(mode)
    picture = prepare(make.encoded(image, "PNG", **options), 16, 64)
    pixels = np.asarray(stored(picture).convert("RGB"))
    assert stored(picture).mode == "RGB"
    assert pixels[:, :20].min() > 235


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_of_an_animation_the_first_frame_is_used(make, kind):
    frames = [make.photo(seed) for seed in range(3)]
    picture = prepare(make.encoded(frames[0], kind, save_all=True, append_images=frames[1:]), 16, 64)
    assert picture.notes == ("several frames, the first is used",)
    assert picture.suffix == "jpg"
    assert close_to(picture, frames[0], 12)


@pytest.mark.parametrize("kind", ["WEBP", "AVIF", "BMP", "TIFF", "PPM", "GIF"])
def test_other_formats_become_jpeg(make, kind):
    picture = prepare(make.encoded(make.photo(), kind), 16, 64)
    assert stored(picture).format == "JPEG"
    assert close_to(picture, make.photo(), 14)


def test_too_many_pixels_are_refused_undecoded():
    data = png(20_000, 20_000, 8, 2, b"no pixels at all")
    bad = failure(data)
    assert (bad.reason, bad.size) == ("too_large", (20_000, 20_000))
    assert "20000x20000" in bad.detail


@pytest.mark.parametrize("size", [(70_000, 20), (2**31 - 1, 2**31 - 1)])
def test_sides_that_no_jpeg_can_hold_and_bombs_are_refused(size):
    assert failure(png(*size, 8, 2, b"")).reason == "too_large"


def test_the_limit_counts_pixels(make):
    data = make.encoded(make.photo())
    assert failure(data, max_pixels=48 * 40 - 1).reason == "too_large"
    assert prepare(data, 16, 64, max_pixels=48 * 40).size == (48, 40)


def test_small_images_are_refused_by_their_short_side(make):
    data = make.encoded(make.photo())
    bad = failure(data, min_side=41)
    assert (bad.reason, bad.size, bad.detail) == ("too_small", (48, 40), "48x40, min_side is 41")
    assert prepare(data, 40, 64).size == (48, 40)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF"])
@pytest.mark.parametrize("progressive", [False, True])
def test_a_cut_image_is_truncated(make, kind, progressive):
    data = make.encoded(make.photo(width=200, height=200), kind, **({"progressive": progressive} if kind == "JPEG" else {}))
    for share in (0.5, 0.8):
        assert failure(data[: int(share * len(data))]).reason == "truncated"


@pytest.mark.parametrize("length", [4, 20, 60])
def test_a_jpeg_cut_in_its_header_is_truncated(make, length):
    assert failure(make.jpeg()[:length]).reason == "truncated"


def test_a_jpeg_that_lacks_its_end_mark_alone_is_whole_enough_or_truncated_never_else(make):
    try:
        assert prepare(make.jpeg()[:-2], 16, 64).size == (48, 40)
    except Unusable as bad:
        assert bad.reason == "truncated"


@pytest.mark.parametrize(
    "data",
    [b"this is no picture", b"<html>404</html>" * 100, b"\0" * 5000, b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 99 99\n"],
)
def test_other_files_are_no_images(data):
    assert failure(data).reason == "not_an_image"


def test_nothing_is_empty():
    assert failure(b"").reason == "empty_file"


def test_damaged_pixels_are_a_decode_error(make):
    data = bytearray(make.encoded(make.photo(), "PNG"))
    middle = data.index(b"IDAT") + 30
    data[middle : middle + 8] = b"\xff" * 8
    assert failure(bytes(data)).reason == "decode_error"


def test_float_pixels_are_refused_with_advice():
    buffer = io.BytesIO()
    Image.fromarray(np.ones((40, 40), np.float32)).save(buffer, "TIFF")
    bad = failure(buffer.getvalue())
    assert bad.reason == "decode_error"
    assert "8 or 16 bits" in bad.detail


def test_random_damage_is_a_class_and_never_a_crash(make):
    rng = np.random.default_rng(1)
    for kind in ("JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP"):
        whole = make.encoded(make.photo(), kind)
        for _ in range(60):
            data = bytearray(whole)
            for place in rng.integers(0, len(data), 6):
                data[place] = rng.integers(256)
            try:
                assert min(prepare(bytes(data), 16, 64).size) >= 16
            except Unusable as bad:
                assert " at 0x" not in bad.detail
