"""The prompts of drawn scenes say what the scenes show, and the detector confirms it."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from pipeline.embedded.scenes import caption, draw_scene, is_held_out, render
from pipeline.evaluate.geneval.colours import colours_read
from pipeline.evaluate.geneval.prompts import TASKS
from pipeline.evaluate.geneval.scenes import PROMPTS_A_TASK, SEED, SceneDetector, scene_prompts
from pipeline.evaluate.geneval.scoring import judge, surest

DETECTOR = SceneDetector()


@cache
def scenes():
    """Scenes by caption: those that the prompts were taken from, and others."""
    drawn = (draw_scene(SEED, "heldout", i, share) for i in range(600) for share in (0.0, 1.0))
    return {caption(scene): scene for scene in drawn}


def reasons(row, scene, px=64):
    image = np.asarray(render(scene, px))
    ((found),) = DETECTOR.detect([image], 0.3)
    return judge(row, surest(found, 0.3), lambda objects: colours_read(image, objects))


def test_all_six_tasks_in_the_grammar_of_held_out_scenes():
    rows = scene_prompts().rows
    assert [row.tag for row in rows[::PROMPTS_A_TASK]] == list(TASKS) and len(rows) == 6 * PROMPTS_A_TASK
    for row in rows:
        scene = scenes()[row.prompt]
        assert all(is_held_out(one.colour, one.shape, one.position, scene.background) for one in scene.objects)
    assert {row.include[0].count for row in rows if row.tag == "counting"} == {1, 2}
    assert {row.include[1].position[0] for row in rows if row.tag == "position"} == {"left of", "right of", "above", "below"}


def test_the_prompts_are_always_the_same():
    assert scene_prompts().sha256 == "15daf756cc62943caccce07a1da195294bfddd35847d24d7a7e8279bed8ad832"
    assert scene_prompts() == scene_prompts()


@pytest.mark.parametrize("px", [32, 64])
def test_a_perfect_picture_of_every_prompt_is_right(px):
    wrong = [(row.prompt, found) for row in scene_prompts().rows if (found := reasons(row, scenes()[row.prompt], px))]
    assert len(wrong) <= 2, wrong  # of 240: at 32 pixels the detector itself errs at times


def changed(scene, **attributes):
    """The scene with attributes of its last object replaced."""
    return replace(scene, objects=(*scene.objects[:-1], replace(scene.objects[-1], **attributes)))


def rows_of(task):
    return [(row, scenes()[row.prompt]) for row in scene_prompts().rows if row.tag == task]


@pytest.mark.parametrize("task", TASKS)
def test_another_shape_is_wrong(task):
    for row, scene in rows_of(task):
        other = "circle" if scene.objects[-1].shape != "circle" else "cross"
        assert reasons(row, changed(scene, shape=other)) or other in row.names


def test_another_colour_is_wrong_where_it_is_asked_for():
    rgb = {"colour": "purple", "rgb": (135.0, 30.0, 175.0)}
    for row, scene in rows_of("colors") + rows_of("color_attr"):
        assert bool(reasons(row, changed(scene, **rgb))) == (scene.objects[-1].colour != "purple")


def test_the_other_side_is_wrong():
    for row, scene in rows_of("position"):
        first, second = scene.objects
        swapped = replace(scene, objects=(replace(first, centre=second.centre), replace(second, centre=first.centre)))
        assert len(reasons(row, swapped)) == 1


def test_one_object_more_is_wrong_where_they_are_counted():
    for row, scene in rows_of("counting"):
        objects = scene.objects
        places = [(0.25, 0.25), (0.75, 0.75), (0.25, 0.75), (0.5, 0.5)]
        free = max(places, key=lambda place: min(np.hypot(*np.subtract(place, one.centre)) for one in objects))
        more = replace(scene, objects=(*objects, replace(objects[0], centre=free, radius=0.1)))
        assert len(DETECTOR.detect([np.asarray(render(more))], 0.3)[0]) == len(objects) + 1
        assert reasons(row, more)


def test_boxes_hold_the_objects():
    for scene in list(scenes().values())[:200]:
        ((found),) = DETECTOR.detect([np.asarray(render(scene))], 0.3)
        assert len(found) == len(scene.objects)
        for one in scene.objects:
            x, y = (64 * side for side in one.centre)
            assert any(
                b[0] < x < b[2] and b[1] < y < b[3] and abs(b[2] - b[0] - 128 * one.radius) < 12 for b in (d.box for d in found)
            )
