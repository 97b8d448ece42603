"""Snakemake's reasons in the words of the configuration."""

import json

import pytest

from pipeline.status.dry_run import Job, parse
from pipeline.status.reasons import why

DRY_RUN = """\
Building DAG of jobs...
Job stats:
job         count
--------  -------
train           1

[Mon Nov 23 16:24:38 2026]
rule train:
    input: results/manifests/low_full.json, results/train/low_masked/summary.json
    output: results/train/low_full/summary.json, results/train/low_full/model.safetensors
    log: results/logs/train/low_full.log
    jobid: 19
    benchmark: results/benchmarks/train/low_full.tsv
    reason: Input files updated by another job: results/train/low_masked/summary.json
    wildcards: stage=low_full
    threads: 2
    resources: tmpdir=/tmp, gpu=0
[Mon Nov 23 16:24:38 2026]
localrule card:
    output: results/fid_coco.json
    log: results/logs/card.log
    reason: Missing output files: results/fid_coco.json

localrule all:
    input: results/fid_coco.json
    reason: Input files updated by another job: results/fid_coco.json
"""


def test_the_jobs_of_a_dry_run_are_read():
    train, card = parse(DRY_RUN)
    assert (train.rule, train.of, train.wildcards) == ("train", "low_full", {"stage": "low_full"})
    assert train.output == ("results/train/low_full/summary.json", "results/train/low_full/model.safetensors")
    assert train.log == "results/logs/train/low_full.log" and train.benchmark == "results/benchmarks/train/low_full.tsv"
    assert card.label == "card" and card.benchmark == ""


def _params(*before, now=()):
    """As Snakemake says that params have changed: representations, in any order."""
    sides = [",".join(map(repr, side)) or "<nothing exclusive>" for side in (before, now)]
    both = f"before: {sides[0]} now: {sides[1]} "
    return f"Params have changed since last execution: Union of exclusive params before and now across all output: {both}"


def _slice(**values):
    return json.dumps(values, sort_keys=True)


TRAIN = {"rule": "train", "wildcards": {"stage": "low"}}
COLLECT = {"rule": "collect", "wildcards": {"source": "scenes", "shard": "00000"}}


@pytest.mark.parametrize(
    ("job", "reason", "expected"),
    [
        (
            TRAIN,
            _params(
                _slice(seed=0, stage={"betas": [0.9, 0.99], "px": 32}),
                now=[_slice(seed=0, stage={"betas": [0.9, 0.9], "px": 64})],
            ),
            ["stages.low.betas: [0.9, 0.99] -> [0.9, 0.9]", "stages.low.px: 32 -> 64"],
        ),
        (TRAIN, _params(_slice(vae="a"), now=[_slice(vae="b")]), ["models.vae: a -> b"]),
        (
            COLLECT,
            _params(_slice(source={"px": 8}), now=[_slice(source={"max_nsfw": 0.1, "px": 8})]),
            ["sources.scenes.max_nsfw: not set -> 0.1"],
        ),
        (
            {"rule": "caption", "wildcards": {"source": "a"}},
            _params(_slice(mode="keep"), now=[_slice(mode="write")]),
            ["sources.a.caption: keep -> write"],
        ),
        (COLLECT, _params("0123456789ab", now=["ba9876543210"]), ["what the code of the step does changed"]),
        (
            {"rule": "model"},
            _params(["0123456789ab", "0123456789ac"], now=[["0123456789ab", "ffffffffffff"]]),
            ["what the code of the step does changed"],
        ),
        ({"rule": "card"}, _params([0.0, None], now=[[3.0, None]]), ["[0.0, null] -> [3.0, null]"]),
        (
            {"rule": "report"},
            _params(_slice(title="a"), now=[_slice(title="b now: c, 'd'; e")]),
            ["report.title: a -> b now: c, 'd'; e"],
        ),
        (
            {"rule": "evaluate"},
            _params(
                "0123456789ab", _slice(evaluation={"guidance": 5.0}), now=["0123456789ac", _slice(evaluation={"guidance": 4.5})]
            ),
            ["what the code of the step does changed", "evaluation.guidance: 5.0 -> 4.5"],
        ),
        (
            {"rule": "manifest"},
            _params(
                _slice(sources={"a": {"role": "real"}, "b": {"role": "real"}}), now=[_slice(sources={"a": {"role": "real"}})]
            ),
            ['sources.b: {"role": "real"} -> not set'],
        ),
        ({"rule": "card"}, "Missing output files: a.json, b.json", ["missing: a.json, b.json"]),
        ({"rule": "card"}, "Updated input files: a, b, c, d", ["input changed: a, b and 2 more"]),
        (
            {"rule": "card"},
            "Missing output files: a.json; Input files updated by another job: made.json, made.tar, other",
            ["missing: a.json", "below collect scenes, other"],
        ),
        (
            {"rule": "manifest", "wildcards": {"stage": "low"}},
            "Set of input files has changed since last execution; Code has changed since last execution; "
            + _params(_slice(px=1), now=[_slice(px=2)]),
            ["other input files", "the rule's command changed", "stages.low.px: 1 -> 2"],
        ),
        ({"rule": "card"}, "Something that this program does not know", ["Something that this program does not know"]),
    ],
)
def test_a_reason_is_told_in_the_words_of_the_configuration(job, reason, expected):
    made_by = {"made.json": "collect scenes", "made.tar": "collect scenes"}
    assert why(Job(output=("x",), reason=reason, **job), made_by) == expected
