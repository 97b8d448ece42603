"""Every sample is trained on, held out or left out with a reason, and the counts add up."""

import json
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.dataset import Manifest
from pipeline.errors import UserError
from pipeline.manifest.account import MOST_LICENCES
from pipeline.verify.command import faults
from tests.unit.manifest.results import Results, index_of, keys_of, sample, usable, written


def test_every_sample_is_trained_on_or_left_out_with_its_reason(results: Results) -> None:
    results.evaluate([sample(7, "of the evaluation")])
    results.add("photos", [
        sample(1), sample(2, bad="truncated"), sample(3, None), sample(4, latent="not_finite"),
        sample(5, side=31), sample(7), sample(1), sample(8),
    ])  # fmt: skip
    manifest = results.build()
    assert manifest.samples == 2 and index_of(manifest) == [(0, 0, 0, 1, 1), (0, 6, 6, 1, 1)]
    assert index_of(manifest, "validation") == []
    assert manifest.counts["photos"] == {
        "seen": 8,
        "bad": {"truncated": 1},
        "collected": 7,
        "left_out": {"below_px": 1, "duplicate": 1, "in_evaluation_set": 1, "latent_not_finite": 1, "no_caption": 1},
        "trained": 2,
        "captions": {"collected": 6, "left_out": {"image_left_out": 4}, "trained": 2},
        "licences": {"unknown": 2},
    }
    reasons = ["no_caption", "latent_not_finite", "below_px", "in_evaluation_set", "duplicate"]
    assert results.left_out() == [(f"photos00000-{n}", reason) for n, reason in zip((2, 3, 4, 5, 6), reasons, strict=True)]
    assert faults(results.root) == []


SAMPLES = st.lists(
    st.builds(
        lambda captions, **facts: sample(facts.pop("content"), *captions, **facts),
        content=st.integers(0, 6),
        captions=st.builds(
            lambda given, wrote: given + wrote or [None],
            st.lists(st.sampled_from(["c", None, "inf"]), max_size=3),
            st.lists(st.sampled_from(["model:a", "model:b"]), max_size=2),
        ),
        side=st.sampled_from([16, 64]),
        bad=st.sampled_from([None, None, "truncated", "too_large"]),
        latent=st.sampled_from([None, None, "fp16_overflow"]),
    ),
    max_size=6,
)


@settings(max_examples=25, deadline=None)
@given(
    st.dictionaries(st.sampled_from(["a", "b", "c"]), st.tuples(SAMPLES, SAMPLES), min_size=1), SAMPLES, st.sampled_from([0, 0.4])
)
def test_the_account_adds_up_from_ledger_to_training(
    tmp_path_factory: pytest.TempPathFactory,
    sources: dict[str, tuple[list[dict], list[dict]]],
    evaluated: list[dict],
    held_out: float,
) -> None:
    results = Results(tmp_path_factory.mktemp("results"))
    results.evaluate(evaluated)
    anchor = sample(100, "anchor")  # is not held out
    for name, (first, second) in sources.items():
        results.add(name, [*first, anchor], shard="00000")
        results.add(name, second, shard="00001")
    manifest = results.build(held_out=held_out)
    everything = {name: [*first, anchor, *second] for name, (first, second) in sources.items()}
    index, held = index_of(manifest), index_of(manifest, "validation")
    trained, validated = (Counter(manifest.shards[shard]["source"] for shard, *_ in lines) for lines in (index, held))
    for name, counts in manifest.counts.items():
        assert counts["seen"] == len(everything[name])
        assert counts["bad"] == Counter(s["bad"] for s in everything[name] if s["bad"])
        assert counts["seen"] == sum(counts["bad"].values()) + counts["collected"]
        assert counts["collected"] == sum(counts["left_out"].values()) + counts["trained"]
        captions = counts["captions"]
        assert captions["collected"] == sum(c is not None for s in everything[name] if not s["bad"] for c in s["captions"])
        assert captions["collected"] == sum(captions["left_out"].values()) + captions["trained"]
        assert sum(counts["licences"].values()) == counts["trained"]
        assert counts["trained"] == trained[name] and counts["left_out"].get("held_out", 0) == validated[name]
        start, end = manifest.value["sources"][name]
        assert {manifest.shards[shard]["source"] for shard, *_ in index[start:end]} <= {name} and end - start == trained[name]
    assert manifest.samples == trained.total() == sum(s["kept"] for s in manifest.shards)
    leaked_captions = {caption for s in evaluated if not s["bad"] for caption in s["captions"]}
    _check_samples(manifest, everything, {s["content"] for s in evaluated}, leaked_captions)


def _check_samples(manifest: Manifest, everything: dict[str, list[dict]], leaks: set[int], leaked: set[str | None]) -> None:
    """What is trained on or held out is every content once whose first usable copy fits, with a run of its usable captions."""

    def may_use(caption: str | None) -> bool:
        return usable(caption) and caption not in leaked

    def good(s: dict) -> bool:
        captioned = any(map(may_use, s["captions"]))
        return not s["bad"] and captioned and s["content"] not in leaks

    def fits(s: dict) -> bool:
        return not s["latent"] and s["side"] >= 32

    firsts: dict[int, dict] = {}
    for s in (s for name in sorted(everything) for s in everything[name] if good(s)):
        firsts.setdefault(s["content"], s)
    expected = [content for content, s in firsts.items() if fits(s)]
    contents = []
    for shard, row, text, texts, came in index_of(manifest) + index_of(manifest, "validation"):
        source, name = manifest.shards[shard]["source"], manifest.shards[shard]["shard"]
        tar = manifest.path.parent.parent / "data" / source / f"{name}.tar"
        kept = [s for s in json.loads(tar.read_text()) if not s["bad"]]
        contents.append(kept[row]["content"])
        captions = [(n, caption) for n, s in enumerate(kept) for caption in s["captions"]][text : text + texts]
        assert good(kept[row]) and fits(kept[row]) and captions and all(n == row and may_use(caption) for n, caption in captions)
        assert [written(caption) for _, caption in captions] == [False] * came + [True] * (texts - came)
    assert sorted(contents) == sorted(expected)


def test_no_sample_left_tells_the_counts(results: Results) -> None:
    results.add("photos", [sample(1, None), sample(2, bad="truncated")])
    with pytest.raises(UserError, match=r"no sample is left .* photos: 2 seen, bad: 1 truncated, left out: 1 no_caption"):
        results.build()
    assert not (results.root / "manifests").exists()


def test_licences_are_counted_by_what_is_trained_on(results: Results) -> None:
    many = [sample(100 + n, license=f"L{n:03}") for n in range(MOST_LICENCES + 5)]
    results.add("b", many)
    results.add("a", [sample(1, license="CC0"), sample(2), sample(3, license="CC BY 4.0"), sample(4, license="CC BY 4.0"),
                      sample(5, None, license="CC0"), sample(6, license="CC BY 4.0", bad="truncated")])  # fmt: skip
    counts = results.build().counts
    assert list(counts["a"]["licences"].items()) == [("CC BY 4.0", 2), ("CC0", 1), ("unknown", 1)]
    of_b = counts["b"]["licences"]
    assert len(of_b) == MOST_LICENCES + 1 and next(iter(of_b.items())) == ("other", 5) and sum(of_b.values()) == len(many)


def test_held_out_samples_are_the_same_in_every_stage(results: Results) -> None:
    """Whatever the stage's resolution and sources are, and wherever the same bytes turn up."""
    images = [sample(n, side=40 + 40 * (n % 2)) for n in range(300)]
    results.add("a", images)
    results.add("b", [sample(300, None), *images[:50], *(sample(n) for n in range(301, 401))])
    both = results.build(held_out=0.2, seed=1)
    held, kept = keys_of(both, "validation"), keys_of(both)
    assert held.isdisjoint(kept) and len(held) + len(kept) == 400 and 50 < len(held) < 110
    assert both.samples == len(kept) and both.counts["a"]["left_out"] == {"held_out": sum(k.startswith("a") for k in held)}
    assert {key for key, reason in results.left_out() if reason == "held_out"} == held

    results.encoded.pop()
    alone = results.build(held_out=0.2, seed=1, stage="other")
    assert keys_of(alone, "validation") == {key for key in held if key.startswith("a")}
    results.encoded.clear()
    results.add("a", images, px=64)
    high = results.build(px=64, held_out=0.2, seed=1, stage="high")
    large = {f"a00000-{n}" for n in range(1, 300, 2)}
    assert keys_of(high, "validation") == held & large and keys_of(high) == large - held
    assert sum(high.counts["a"]["left_out"].values()) == 150 + len(held & large)


def test_more_held_out_adds_to_those_before_and_a_seed_changes_them(results: Results) -> None:
    results.add("a", [sample(n) for n in range(1000)])
    few, many, others = (keys_of(results.build(held_out=s, seed=n), "validation") for s, n in ((0.1, 0), (0.3, 0), (0.3, 1)))
    assert few < many and len(many & others) < 0.5 * len(many)
    assert 70 < len(few) < 130 and 250 < len(many) < 350 and 250 < len(others) < 350
    none = results.build(held_out=1e-9)
    assert none.samples == 1000 and index_of(none, "validation") == []
