"""The rules themselves: lint, and one line for each of a user's mistakes."""

import os
import re

import pytest


def test_lint_is_clean(project):
    done = project.snakemake("--lint", overlays=())
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("preset", ["paper", "one_gpu", "photos"])
def test_every_preset_builds_its_graph(project, preset):
    for folder in ("coco/annotations", "coco/images", "photos"):
        (project.folder / "data" / folder).mkdir(parents=True)
    for file in ("coco/annotations/captions_val2014.json", "coco/captions.json"):
        (project.folder / "data" / file).write_text("{}")
    done = project.snakemake("--dry-run", "--quiet", "all", overlays=(f"workflow/presets/{preset}.yaml",))
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("overlay", "message"),
    [
        ("sead: 1", "sead: no such key; did you mean 'seed'?"),
        ("stages: {low_masked: {mask_ratio: 2}}", "stages.low_masked.mask_ratio: input should be less than 1, found 2"),
        ("evaluation: {source: coca}", "evaluation.source: no 'coca' in sources; did you mean 'coco'?"),
    ],
)
def test_a_mistake_in_the_configuration_is_one_line(project, overlay, message):
    file = project.overlay("my.yaml", overlay)
    done = project.snakemake("--dry-run", overlays=(file,))
    assert done.returncode != 0
    of_snakemake = ("Config file config.yaml is extended by", "Using workflow specific profile profiles/default")
    lines = [line for line in (done.stdout + done.stderr).splitlines() if line.strip() and not line.startswith(of_snakemake)]
    assert len(lines) == 1 and message in lines[0] and "my.yaml" in lines[0], lines


@pytest.mark.parametrize(("runtime", "asked"), [("{}", 6000), ("{captioner_mb: 9000}", 9000)])
def test_a_captioner_in_a_folder_gets_the_memory_that_its_weights_take(project, runtime, asked):
    weights = project.folder / "my/captioner/model.safetensors"
    weights.parent.mkdir(parents=True)
    weights.touch()
    os.truncate(weights, 10**9)
    file = project.overlay("my.yaml", f"models: {{captioner: my/captioner}}\nruntime: {runtime}")
    captions = [f"results/captions/{name}/00000.json" for name in ("scenes", "coco")]
    done = project.snakemake("--dry-run", "--", *captions, overlays=(file,))
    found = re.findall(r"^rule caption:\n(?:    .*\n)*?    resources: .*\bmem_mb=(\d+)", done.stdout, re.M)
    assert done.returncode == 0 and sorted(map(int, found)) == [4000, asked], done.stdout + done.stderr


def test_a_missing_path_names_the_key_and_starts_nothing_else(project):
    file = project.overlay("my.yaml", "sources: {mine: {kind: webdataset, path: nowhere/*.tar}}")
    done = project.snakemake("--", "results/data/mine/00000.json", overlays=("tests/workflow/smoke.yaml", file))
    assert done.returncode != 0
    assert "sources.mine.path" in done.stdout + done.stderr
