"""What a user writes: the configuration, and files of prompts."""

import json

import pytest
import yaml

from pipeline.config import load, slice_for
from pipeline.evaluate.geneval.prompts import read_prompts
from pipeline.evaluate.prompt_files import read_named
from pipeline.fingerprint import ROOT
from tests.fuzz.conftest import damaged, spliced

CONFIGS = [ROOT / "config.yaml", ROOT / "workflow/presets/paper.yaml", ROOT / "workflow/presets/photos.yaml"]


def test_the_configuration_as_text(fuzz):
    def check(data, folder):
        (folder / "my.yaml").write_bytes(data)
        load(ROOT / "config.yaml", folder / "my.yaml")

    fuzz([file.read_bytes() for file in CONFIGS], check, damaged)


def test_values_of_the_configuration(fuzz):
    """JSON is YAML, so that values can be replaced in it."""

    def check(data, folder):
        (folder / "my.yaml").write_bytes(data)
        config = load(folder / "my.yaml")
        for source in config.sources:
            slice_for(config, "collect", source=source)
        for stage in config.schedule:
            slice_for(config, "train", stage=stage)

    fuzz([json.dumps(yaml.safe_load(CONFIGS[0].read_bytes())).encode()], check, spliced)


def test_prompts_of_geneval(fuzz):
    lines = [
        {
            "tag": "counting",
            "include": [{"class": "cat", "count": 3}],
            "exclude": [{"class": "cat", "count": 4}],
            "prompt": "three cats",
        },
        {
            "tag": "position",
            "include": [{"class": "dog", "count": 1}, {"class": "cat", "count": 1, "position": ["left of", 0]}],
            "prompt": "a cat left of a dog",
        },
    ]

    def check(data, folder):
        (folder / "prompts.jsonl").write_bytes(data)
        read_prompts(folder / "prompts.jsonl", "mine")

    fuzz(["\n".join(map(json.dumps, lines)).encode()], check, damaged, spliced)


@pytest.mark.parametrize("kind", ["txt", "csv", "tsv"])
def test_sets_of_prompts(fuzz, kind):
    comma = "\t" if kind == "tsv" else ","
    rows = ["a cat", "a dog"] if kind == "txt" else [f"Prompt{comma}Category", f"a cat{comma}animals", f'"a dog"{comma}animals']

    def check(data, folder):
        (folder / f"p.{kind}").write_bytes(data)
        read_named(folder / f"p.{kind}", "mine")

    fuzz(["\n".join(rows).encode()], check)
