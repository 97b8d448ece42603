import base64
import io
import json

import numpy as np
import pytest
from PIL import Image

from pipeline.evaluate import gallery

RED, BLUE = (np.full((32, 32, 3), colour, np.uint8) for colour in ((255, 0, 0), (0, 0, 255)))


def decoded(uri):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.removeprefix("data:image/png;base64,")))))


def test_the_gallery_holds_names_and_both_images(tmp_path):
    gallery.write_gallery(tmp_path / "gallery.json", [{"index": 0, "key": "7", "caption": "a"}], [(RED, BLUE)])
    (entry,) = json.loads((tmp_path / "gallery.json").read_text())
    assert (entry["index"], entry["key"], entry["caption"]) == (0, "7", "a")
    assert np.array_equal(decoded(entry["generated"]), RED) and np.array_equal(decoded(entry["real"]), BLUE)


def test_large_images_are_made_smaller():
    assert decoded(gallery.data_uri(np.zeros((512, 512, 3), np.uint8))).shape == (128, 128, 3)


@pytest.mark.parametrize("count", [1, 4, 9])
def test_the_grid_shows_generated_left_of_real(tmp_path, count):
    captions = ["a red square beside a blue one " * 9, *["short 🟥"] * (count - 1)]
    gallery.write_grid(tmp_path / "samples.png", captions, [(RED, BLUE)] * count)
    page = np.asarray(Image.open(tmp_path / "samples.png"))
    red, blue = ((page == colour).all(axis=2) for colour in ((255, 0, 0), (0, 0, 255)))
    assert red.sum() == blue.sum() == count * gallery.TILE_PX**2
    assert red.any(axis=0).argmax() < blue.any(axis=0).argmax()
    assert (page.sum(axis=2) < 120).any(), "captions are written in black"


@pytest.mark.parametrize("caption", ["word " * 2000, "W" * 10_000, "", "كلمة " * 300])
def test_a_caption_of_any_length_stays_in_its_cell(caption):
    cell = gallery.draw_pair(caption, (RED, BLUE))
    assert cell.width == 2 * gallery.TILE_PX + gallery.GAP_PX and cell.height < gallery.TILE_PX + 60
