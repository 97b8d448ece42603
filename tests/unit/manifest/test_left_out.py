"""Which samples are left out: copies, what the evaluation set has, filters, and what was taken down."""

import math

import pytest

from pipeline.errors import UserError
from tests.unit.manifest.results import Results, index_of, keys_of, near, sample


def test_of_duplicates_the_first_usable_one_stays(results: Results) -> None:
    results.add("b", [sample(1), sample(2)])
    results.add("a", [sample(1, None), sample(2), sample(2)])
    assert [line[:2] for line in index_of(results.build())] == [(0, 1), (1, 0)]
    assert results.left_out() == [("a00000-0", "no_caption"), ("a00000-2", "duplicate"), ("b00000-1", "duplicate")]


def test_of_near_duplicates_the_first_stays_in_all_sources_and_no_chains_form(results: Results) -> None:
    results.add("b", [near(1, 0), near(2, 20, 21, 22, 23, 24), near(3)])
    results.add("a", [near(4, 0, 1, 2), near(5, 0, 1, 2, 3), near(6, 0, 1, 2, 3, 4, 5)])
    # a-1 is near to a-0. a-2 is 2 bits from a-1 alone. b-0 is 2 bits from a-0, and b-2 one bit from b-0 alone.
    assert keys_of(results.build(filters={"near_duplicates": 2})) == {"a00000-0", "a00000-2", "b00000-1", "b00000-2"}
    assert results.left_out() == [("a00000-1", "near_duplicate"), ("b00000-0", "near_duplicate")]
    assert keys_of(results.build(filters={"near_duplicates": 3})) == {"a00000-0", "b00000-1"}
    assert results.build(filters={"near_duplicates": 0}).samples == 6
    assert results.build(filters={"near_duplicates": None}).samples == 6


@pytest.mark.parametrize("upscale", [False, True])
def test_the_same_copy_stays_at_every_resolution(results: Results, upscale: bool) -> None:
    """The largest, which is there at the most resolutions; also where the latents of one resolution are unusable."""
    sides = {"small": 40, "middle": 80, "large": 160}
    groups = [["small", "large", "middle"], ["middle", "small"], ["small", "small"], ["large", "large", "small"]]
    place = [(group, side) for group, sides_ in enumerate(groups) for side in sides_]
    samples = [near(n, *range(8 * group, 8 * group + 8), n % 8 + 40, side=sides[side]) for n, (group, side) in enumerate(place)]
    survivors, trained = [1, 3, 5, 7], {}
    for px, bad in ((32, {}), (64, {7: "not_finite"}), (128, {})):
        results.encoded = []
        results.add("a", [one | {"latent": bad.get(n)} for n, one in enumerate(samples)], px=px)
        trained[px] = keys_of(results.build(px=px, upscale=upscale, stage=f"at_{px}"))
        gone = {key for key, reason in results.left_out(f"at_{px}") if reason == "near_duplicate"}
        assert gone == {f"a00000-{n}" for n in range(10) if n not in survivors}
    fits = {32: survivors, 64: [1, 3, 5] if upscale else [1, 3], 128: survivors if upscale else [1, 7]}
    assert trained == {px: {f"a00000-{n}" for n in numbers} for px, numbers in fits.items()}


def test_images_that_go_for_other_reasons_take_no_near_duplicates_with_them(results: Results) -> None:
    results.add("a", [near(1, side=16), near(2, bad="truncated"), near(3, license="no"), near(4, license="yes"), near(5, 1)])
    manifest = results.build(filters={"licences": ["yes"]})
    assert keys_of(manifest) == {"a00000-3"} and manifest.counts["a"]["licences"] == {"yes": 1}
    assert results.left_out() == [("a00000-0", "licence"), ("a00000-2", "licence"), ("a00000-4", "licence")]
    assert keys_of(results.build()) == {"a00000-2"}


def test_plain_images_are_no_near_duplicates_of_each_other(results: Results) -> None:
    plain = "8000000000000000"  # of any plain colour
    results.evaluate([sample(9, phash=plain)], "another")
    results.add("a", [sample(1, phash=plain), sample(2, phash=plain), sample(2, phash=plain), sample(3, phash=None)])
    manifest = results.build()
    assert manifest.samples == 3 and manifest.counts["a"]["left_out"] == {"duplicate": 1}


def test_images_near_to_the_evaluation_set_are_left_out(results: Results) -> None:
    """Also those that the evaluation saw and could not use."""
    results.evaluate([near(1), near(2, *range(30, 40)), sample(3, bad="too_small")], "another")
    results.add("a", [near(4, 5, 6), near(5, 5, 6, 7), near(4, 5, 6), near(6, *range(30, 39)), sample(3), near(2)])
    assert keys_of(results.build()) == {"a00000-1"}
    reasons = ["near_evaluation_set"] * 3 + ["in_evaluation_set"] * 2
    assert results.left_out() == [(f"a00000-{n}", reason) for n, reason in zip((0, 2, 3, 4, 5), reasons, strict=True)]
    exact = results.build(filters={"near_duplicates": None})
    assert exact.counts["a"]["left_out"] == {"duplicate": 1, "in_evaluation_set": 2}


def test_captions_of_the_evaluation_set_are_not_used(results: Results) -> None:
    results.evaluate([sample(1, "A dog, on a sofa."), sample(2, "Ein Café"), sample(3, "!?"), sample(4, None)])
    results.add("a", [
        sample(11, "a DOG on a sofa"), sample(12, "a dog on a sofa", "a dog"), sample(13, "EIN CAFE\u0301!", "model:x"),
        sample(14, "a dog on the sofa"), sample(15, "..."), sample(16, "one", "a dog on a sofa", "two", "three"),
    ])  # fmt: skip
    manifest = results.build()
    assert index_of(manifest) == [(0, 1, 2, 1, 1), (0, 2, 4, 1, 0), (0, 3, 5, 1, 1), (0, 4, 6, 1, 1), (0, 5, 9, 2, 2)]
    assert results.left_out() == [("a00000-0", "caption_in_evaluation_set")]
    left_out = {"apart": 1, "caption_in_evaluation_set": 4}
    assert manifest.counts["a"]["captions"] == {"collected": 11, "left_out": left_out, "trained": 6}
    assert results.build(filters={"leaked_captions": False}).counts["a"]["captions"]["trained"] == 11


def test_small_images_are_used_when_the_source_is_enlarged(results: Results) -> None:
    results.add("photos", [sample(1, side=31), sample(2, side=32)])
    assert results.build().samples == 1 and results.build(upscale=True).samples == 2


def test_filters_by_scores(results: Results) -> None:
    scores = [None, [], [("aesthetic", 4.9)], [("nsfw", 0.2), ("aesthetic", 5.0)], [("nsfw", 0.3)], [("aesthetic", math.nan)]]
    results.add("a", [sample(n, scores=score) for n, score in enumerate(scores)])
    results.build(filters={"scores": {"aesthetic": {"min": 5.0}, "nsfw": {"max": 0.2}, "watermark": {"max": 0.1}}})
    assert results.left_out() == [("a00000-2", "score"), ("a00000-4", "score")]


def test_filters_by_shape(results: Results) -> None:
    results.add("a", [sample(n, width=w, height=h) for n, (w, h) in enumerate([(60, 120), (120, 60), (60, 121), (900, 32)])])
    assert results.build().samples == 4 and results.build(filters={"max_aspect": 2}).samples == 2
    assert results.left_out() == [("a00000-2", "aspect_ratio"), ("a00000-3", "aspect_ratio")]


def test_captions_of_another_length_are_not_used(results: Results) -> None:
    captions = [("ab 12!",), ("abc",), ("abcdefg",), ("ab", "日本語"), ("abcdefg", "ab", "abc"), (None,), ("a1", "model:abc")]
    results.add("a", [sample(n, *texts) for n, texts in enumerate(captions)])
    manifest = results.build(filters={"min_caption": 3, "max_caption": 6})
    assert index_of(manifest) == [(0, 1, 1, 1, 1), (0, 3, 4, 1, 1), (0, 4, 7, 1, 1)]
    reasons = ["caption_too_short", "caption_too_long", "no_caption", "caption_too_short"]
    assert results.left_out() == [(f"a00000-{n}", reason) for n, reason in zip((0, 2, 5, 6), reasons, strict=True)]


def test_samples_that_were_taken_down_go_and_copies_of_them_too(results: Results, capsys: pytest.CaptureFixture[str]) -> None:
    results.add("b", [sample(2), near(3, 7), sample(4)])
    results.add("a", [near(1), sample(2), sample(2), sample(5), sample(6, bad="truncated")])
    names = results.root / "take_down.txt"
    names.write_text("a/a00000-0 # asked for\n\n# more\na/a00000-1\na/a00000-4\na/absent\nelsewhere/x\n")
    assert keys_of(results.build()) == {"a00000-3", "b00000-2"}
    assert {reason for _, reason in results.left_out()} == {"taken_down"} and len(results.left_out()) == 5
    told = f"{names}: 1 of 4 lines for this stage's sources name no sample that was seen\n"
    assert capsys.readouterr().err == told
    names.write_text("a/a00000-0\nno key\n")
    with pytest.raises(UserError, match=r"take_down\.txt:2: 'no key': not SOURCE/KEY"):
        results.build()


def test_what_is_taken_down_is_given_before_other_reasons(results: Results) -> None:
    (results.root / "take_down.txt").write_text("a/a00000-0\n")
    results.add("a", [sample(1, None, side=16, license="no"), sample(2, None, license="no"), sample(3, license="yes")])
    results.build(filters={"licences": ["yes"]})
    assert results.left_out() == [("a00000-0", "taken_down"), ("a00000-1", "licence")]
