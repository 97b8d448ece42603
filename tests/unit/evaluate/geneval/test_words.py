import pytest

from pipeline.evaluate.geneval.words import COCO, LABELS, MEANINGS, class_of, named_in


def test_names():
    assert len(COCO) == 80 and {"person", "hair drier", "tv remote", "toothbrush"} <= COCO
    assert set(MEANINGS.values()) <= COCO and not set(LABELS) & COCO
    assert class_of("Mouse") == "computer mouse" and class_of("diningtable") == "dining table" and class_of("dog") == "dog"


@pytest.mark.parametrize(
    ("caption", "names"),
    [
        ("A dog and two cats on a sofa.", {"dog", "cat", "couch"}),
        ("Men riding bikes past buses, a TV behind them", {"person", "bicycle", "bus", "tv"}),
        ("a teddy bear with a hot dog", {"teddy bear", "hot dog"}),
        ("an orange cat eats oranges with knives", {"cat", "orange", "knife"}),
        ("Teddy bears, wine glasses and scissors", {"teddy bear", "wine glass", "scissors"}),
        ("a beautiful landscape", set()),
        ("", set()),
    ],
)
def test_what_a_caption_names(caption, names):
    assert named_in(caption) == names
