import time

import pytest

from pipeline.evaluate import card
from pipeline.metrics.features import FeatureNetwork

PUBLISHED = card.PUBLISHED_IDS_SHA256


def test_nothing_keeps_the_published_protocol_from_being_comparable():
    assert card.why_not_comparable("inception", 30_000, PUBLISHED) == []


@pytest.mark.parametrize(("features", "images", "ids", "word"), [
    ("embedded:clip", 30_000, PUBLISHED, "Inception"),
    ("inception", 29_999, PUBLISHED, "29,999 images"),
    ("inception", 30_000, "0" * 64, "ids"),
])  # fmt: skip
def test_each_departure_is_named(features, images, ids, word):
    (reason,) = card.why_not_comparable(features, images, ids)
    assert word in reason


def test_the_whole_departure_is_named():
    assert len(card.why_not_comparable("embedded:clip", 85, "0" * 64)) == 3


@pytest.mark.parametrize(("images", "warned"), [(127, True), (128, False)])
def test_fewer_images_than_twice_the_width_are_warned_of(images, warned):
    network = FeatureNetwork("clip", "hash", 32, 64, lambda pixels: pixels)
    found = card.warnings_for(network, images)
    assert bool(found) == warned and all(f"{images} images for 64 features" in line for line in found)


def test_a_part_that_runs_twice_is_added_up():
    clock = card.Clock()
    for _ in range(2):
        with clock("sampling"):
            time.sleep(0.03)
    assert 0.06 <= clock.seconds["sampling"] < 1
