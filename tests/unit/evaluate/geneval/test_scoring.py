"""Pictures judged from boxes written by hand: every task, what is just right and what is just wrong."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.evaluate.geneval.prompts import Prompt
from pipeline.evaluate.geneval.scoring import MAX_OBJECTS, Detection, intersection_over_union, judge, relations, surest


def prompt(tag, *include, exclude=()):
    return Prompt.model_validate({"tag": tag, "include": list(include), "exclude": list(exclude), "prompt": "a picture"})


def there(name, x=0.0, y=0.0, side=10.0, score=0.95, colour=None):
    """An object whose box has its top left corner at (x, y)."""
    return Detection(name, score, (x, y, x + side, y + side), colour=colour)


def reasons(asked, *found, threshold=0.3, overlap=1.0):
    return judge(asked, surest(found, threshold, overlap), lambda objects: [one.colour for one in objects])


DOG = {"class": "dog", "count": 1}
TWO_DOGS = prompt("counting", {"class": "dog", "count": 2}, exclude=[{"class": "dog", "count": 3}])
RED_CAR = prompt("colors", {"class": "car", "count": 1, "color": "red"})
CAT_AND_DOG = prompt("two_object", {"class": "cat", "count": 1}, DOG)


def left_of(relation="left of"):
    return prompt("position", DOG, {"class": "cat", "count": 1, "position": [relation, 0]})


def test_single_object():
    asked = prompt("single_object", DOG)
    assert reasons(asked, there("dog")) == []
    assert reasons(asked, there("dog"), there("dog", 50), there("cat")) == [], "more than asked for is right"
    assert reasons(asked, there("cat")) == ["1 dog wanted, none found"]
    assert reasons(asked) == ["1 dog wanted, none found"]


def test_the_score_must_be_above_the_threshold():
    asked = prompt("single_object", DOG)
    assert reasons(asked, there("dog", score=0.3)) and not reasons(asked, there("dog", score=0.3001))


def test_two_object():
    assert reasons(CAT_AND_DOG, there("dog"), there("cat")) == []
    assert reasons(CAT_AND_DOG, there("dog"), there("dog", 50)) == ["1 cat wanted, none found"]
    assert len(reasons(CAT_AND_DOG)) == 2


@pytest.mark.parametrize(("number", "wrong"), [(0, "none"), (1, "1"), (2, None), (3, "3"), (7, "7")])
def test_counting_wants_the_number_and_no_more(number, wrong):
    found = reasons(TWO_DOGS, *(there("dog", 20 * i) for i in range(number)))
    assert found == ([] if wrong is None else [f"2 dog wanted, {wrong} found"] if number < 2 else [
        f"fewer than 3 dog wanted, {wrong} found"])  # fmt: skip


def test_counting_looks_at_sure_objects_alone():
    dogs = [there("dog", 20 * i, score=score) for i, score in enumerate((0.95, 0.92, 0.6))]
    assert reasons(TWO_DOGS, *dogs, threshold=0.9) == [] and reasons(TWO_DOGS, *dogs, threshold=0.3)


def test_of_a_class_no_more_than_sixteen_are_looked_at():
    crowd = [there("dog", i, score=0.5 + i / 100) for i in range(MAX_OBJECTS + 4)]
    kept = surest(crowd, 0.3)["dog"]
    assert len(kept) == MAX_OBJECTS and [one.score for one in kept] == sorted((one.score for one in crowd), reverse=True)[:16]


def test_colors():
    assert reasons(RED_CAR, there("car", colour="red")) == []
    assert reasons(RED_CAR, there("car", colour="blue")) == ["1 red car wanted, 1 blue found"]
    assert reasons(RED_CAR, there("bus", colour="red")) == ["1 car wanted, none found"]


def test_only_the_surest_objects_are_asked_for_their_colour():
    assert reasons(RED_CAR, there("car", colour="red", score=0.9), there("car", 50, colour="blue", score=0.5)) == []
    assert reasons(RED_CAR, there("car", colour="red", score=0.5), there("car", 50, colour="blue", score=0.9))


def test_as_many_in_the_colour_as_asked_for():
    two = prompt("colors", {"class": "car", "count": 2, "color": "red"})
    found = reasons(two, there("car", colour="red"), there("car", 50, colour="blue"))
    assert found == ["2 red car wanted, 1 blue, 1 red found"]


def test_color_attr_does_not_mix_up_the_colours():
    asked = prompt("color_attr", {"class": "car", "count": 1, "color": "red"}, {"class": "dog", "count": 1, "color": "black"})
    assert reasons(asked, there("car", colour="red"), there("dog", 30, colour="black")) == []
    assert len(reasons(asked, there("car", colour="black"), there("dog", 30, colour="red"))) == 2


PLACES = {"left of": (-40, 0), "right of": (40, 0), "above": (0, -40), "below": (0, 40)}


@pytest.mark.parametrize("relation", PLACES)
@pytest.mark.parametrize("stands", PLACES)
def test_position(relation, stands):
    x, y = PLACES[stands]
    found = reasons(left_of(relation), there("dog", 100, 100), there("cat", 100 + x, 100 + y))
    assert found == ([] if relation == stands else [f"cat {relation} dog wanted, {stands} found"])


def test_position_without_the_other_object():
    assert reasons(left_of(), there("cat")) == [
        "1 dog wanted, none found",
        "cat left of another object wanted, which was not found",
    ]
    assert reasons(left_of(), there("dog")) == ["1 cat wanted, none found"]


def test_every_object_must_stand_in_the_place():
    asked = prompt("position", {"class": "dog", "count": 2}, {"class": "cat", "count": 1, "position": ["left of", 0]})
    assert reasons(asked, there("cat", 0), there("dog", 50), there("dog", 90)) == []
    assert reasons(asked, there("cat", 50), there("dog", 0), there("dog", 90)) == ["cat left of dog wanted, right of found"]


def test_a_target_in_the_wrong_colour_is_no_target():
    asked = prompt("position", DOG | {"color": "black"}, {"class": "cat", "count": 1, "position": ["above", 0]})
    assert len(reasons(asked, there("dog", 0, 50, colour="white"), there("cat"))) == 2


@pytest.mark.parametrize(
    ("offset", "places"),
    [
        ((0, 0), set()),
        ((2, 0), set()),  # within the margin: a tenth of both widths, 10 each
        ((2.1, 0), set()),  # past it by 0.1 of 2.1
        ((5, 0), {"right of"}),  # 3 of 5
        ((-5, 0), {"left of"}),
        ((0, -5), {"above"}),
        ((30, 30), {"right of", "below"}),  # a diagonal is both
        ((-30, 30), {"left of", "below"}),
        ((30, 12), {"right of"}),  # 10 of 32.3 down
        ((30, 1), {"right of"}),
    ],
)
def test_relations_leave_a_margin(offset, places):
    x, y = offset
    assert relations((x, y, x + 10, y + 10), (0, 0, 10, 10)) == places


def test_larger_objects_must_stand_further_apart():
    assert relations((30, 0, 130, 100), (0, 0, 100, 100)) == set()  # 30 - 20 of 30
    assert relations((41, 0, 141, 100), (0, 0, 100, 100)) == {"right of"}


def test_boxes_of_one_object_count_once_where_the_detector_may_give_several():
    twice = [there("dog", 0, score=0.9), there("dog", 1, score=0.8), there("dog", 50, score=0.7)]
    assert len(surest(twice, 0.3)["dog"]) == 3
    assert [one.score for one in surest(twice, 0.3, overlap=0.5)["dog"]] == [0.9, 0.7]
    assert len(surest([twice[0], there("cat", 0)], 0.3, overlap=0.5)) == 2, "another class is another object"


@pytest.mark.parametrize(
    ("other", "share"),
    [((0, 0, 10, 10), 1.0), ((10, 0, 20, 10), 0.0), ((5, 0, 15, 10), 1 / 3), ((0, 0, 0, 0), 0.0), ((2, 2, 4, 4), 0.04)],
)
def test_intersection_over_union(other, share):
    assert (
        intersection_over_union((0, 0, 10, 10), other) == intersection_over_union(other, (0, 0, 10, 10)) == pytest.approx(share)
    )
    assert intersection_over_union((1, 1, 1, 1), (1, 1, 1, 1)) == 0.0, "nothing covers nothing"


sides = st.floats(0, 500, allow_nan=False)
boxes = st.builds(lambda x, y, w, h: (x, y, x + w, y + h), sides, sides, st.floats(1, 200), st.floats(1, 200))
names, colours = st.sampled_from(["dog", "cat", "car"]), st.sampled_from(["red", "black", "blue"])
scores = st.floats(0.31, 1, allow_nan=False)
objects = st.lists(st.builds(Detection, names, scores, boxes, st.none(), colours), max_size=12)
wanted = st.sampled_from([TWO_DOGS, RED_CAR, CAT_AND_DOG, left_of("above")])


@given(objects, wanted, st.randoms(use_true_random=False))
def test_the_order_of_detections_does_not_matter(found, asked, chance):
    mixed = list(found)
    chance.shuffle(mixed)
    for overlap in (0.5, 1.0):
        assert reasons(asked, *mixed, overlap=overlap) == reasons(asked, *found, overlap=overlap)


@given(objects, wanted)
def test_unsure_objects_and_those_that_nobody_asks_for_change_nothing(found, asked):
    more = [there("toaster", 3, score=0.99), there("dog", 7, score=0.1), there("cat", 7, score=0.3)]
    assert reasons(asked, *found, *more) == reasons(asked, *found)


@given(boxes, boxes)
def test_relations_are_mirrored(box, target):
    mirror = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
    assert {mirror[place] for place in relations(box, target)} == relations(target, box)


@given(boxes, boxes)
def test_nothing_is_on_both_sides(box, target):
    found = relations(box, target)
    assert not {"left of", "right of"} <= found and not {"above", "below"} <= found and not relations(box, box)


@given(boxes, boxes)
def test_intersection_over_union_is_a_share(a, b):
    assert 0 <= intersection_over_union(a, b) <= 1 and intersection_over_union(a, a) == pytest.approx(1)
