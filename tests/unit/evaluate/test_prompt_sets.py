import numpy as np
import pytest
from PIL import Image

from pipeline.config.evaluation import Evaluation
from pipeline.config.running import Downloads
from pipeline.download.files import Files
from pipeline.errors import UserError
from pipeline.evaluate.prompt_files import Named
from pipeline.evaluate.prompt_sets import COLUMNS, TILE_PX, PromptSet, draw_cell, write_page

RED = np.zeros((32, 32, 3), np.uint8)
RED[..., 0] = 255


@pytest.fixture
def load(tmp_path):
    def go(limit=3, **sets):
        evaluation = Evaluation(source="coco", prompt_sets=sets, prompts_a_set=limit)
        return PromptSet.load(evaluation, Files(tmp_path / "files", Downloads()))

    return go


@pytest.fixture
def csv(tmp_path):
    (tmp_path / "set.csv").write_text("Prompts,Category\na,X\nb,X\nc,Y\nd,Z\n")
    return str(tmp_path / "set.csv")


def test_prompts_are_spread_over_the_categories(load, csv):
    (one,) = load(mine=csv)
    assert one.name == "mine" and one.rows == [Named("a", "X"), Named("c", "Y"), Named("d", "Z")]


def test_a_set_is_drawn_in_a_folder_of_its_own_and_shown_as_one_page(load, csv, tmp_path):
    (one,) = load(limit=4, mine=csv)
    (fewer,) = load(limit=3, mine=csv)
    assert one.drawing.texts == ["a", "b", "c", "d"] and one.drawing.purpose == fewer.drawing.purpose == "prompts mine"
    assert one.drawing.name.startswith("mine-") and one.drawing.name != fewer.drawing.name
    images = one.drawing.images(tmp_path / "work")
    images.complete(lambda indices: np.stack([RED for _ in indices]), 3, "drawing")
    one.write(images, tmp_path / "prompts/mine.png")
    page = np.asarray(Image.open(tmp_path / "prompts/mine.png"))
    assert (page == (255, 0, 0)).all(2).sum() == 4 * TILE_PX**2 and (page.sum(2) < 120).any()


def test_rows_of_the_page_are_filled_from_the_left(tmp_path):
    write_page(tmp_path / "page.png", [Named("x", "")] * (COLUMNS + 1), [RED] * (COLUMNS + 1))
    red = (np.asarray(Image.open(tmp_path / "page.png")) == (255, 0, 0)).all(2)
    last = red[red.shape[0] // 2 :]
    assert last.any(0).sum() == TILE_PX and last.any(0).argmax() < TILE_PX


@pytest.mark.parametrize("text", ["word " * 2000, "W" * 5000, "🟥 كلمة " * 300, ""])
def test_a_prompt_of_any_length_stays_in_its_cell(text):
    assert draw_cell(Named(text, text), RED).size == draw_cell(Named("a", ""), RED).size


def test_a_missing_file_is_named_by_its_key(load):
    with pytest.raises(UserError, match=r"^evaluation.prompt_sets.mine: none.tsv: .*not there"):
        load(mine="none.tsv")
