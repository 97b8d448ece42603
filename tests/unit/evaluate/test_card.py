import time

import pytest

from pipeline.config.evaluation import Evaluation
from pipeline.evaluate import card
from pipeline.metrics.features import FeatureNetwork

PUBLISHED = card.PUBLISHED_IDS_SHA256


def reasons(images=30_000, ids=PUBLISHED, px=512, **keys):
    return card.why_not_comparable(Evaluation(source="coco", **keys), images, ids, px)


def test_nothing_keeps_the_published_protocol_from_being_comparable():
    assert reasons() == reasons(guidance=1.5) == []


@pytest.mark.parametrize(("changed", "words"), [
    ({"features": "embedded:clip"}, "not of Inception"),
    ({"images": 29_999}, "29,999 images, not 30,000"),
    ({"ids": "0" * 64}, "image ids"),
    ({"px": 256}, "256 px, not 512"),
    ({"resize": "legacy_pytorch"}, "legacy_pytorch, not clean"),
    ({"steps": 12}, "by heun in 12 steps, not by heun in 30"),
    ({"sampler": {"name": "euler"}}, "by euler in 30 steps"),
    ({"sampler": {"interval": (0.3, 5.0)}}, "some noise levels only"),
])  # fmt: skip
def test_each_departure_is_named(changed, words):
    (reason,) = reasons(**changed)
    assert words in reason


def test_the_whole_departure_is_named():
    assert len(reasons(85, "0" * 64, 64, features="embedded:clip", steps=12)) == 5


@pytest.mark.parametrize(("images", "warned"), [(127, True), (128, False)])
def test_fewer_images_than_twice_the_width_are_warned_of(images, warned):
    network = FeatureNetwork("clip", "hash", 32, 64, lambda pixels: pixels)
    found = card.warnings_for(network, images, "ema")
    assert bool(found) == warned and all(f"{images} images for 64 features" in line for line in found)
    *same, last = card.warnings_for(network, images, "best")
    assert same == found and "chosen by their FID" in last


def test_a_part_that_runs_twice_is_added_up():
    clock = card.Clock()
    for _ in range(2):
        with clock("sampling"):
            time.sleep(0.03)
    assert 0.06 <= clock.seconds["sampling"] < 1
