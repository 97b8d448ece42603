"""Thousands of files and shards: what a job declares, and what it is called with."""

import re


def test_a_shard_has_its_own_archives_as_inputs_and_no_others(project):
    """With all of them 14,000 archives in 700 shards were ten million inputs, and one new time collected all shards again."""
    (project.folder / "tars").mkdir()
    for number in range(6):
        (project.folder / f"tars/{number}.tar").touch()
    file = project.overlay("my.yaml", "sources: {mine: {kind: webdataset, path: 'tars/{0..5}.tar', shards: 3}}")
    wanted = [f"results/data/mine/{shard:05d}.json" for shard in range(3)]
    done = project.snakemake("--dry-run", "--", *wanted, overlays=("tests/workflow/smoke.yaml", file))
    assert done.returncode == 0, done.stdout + done.stderr
    found = re.findall(r"^rule collect:\n    input: (.*)\n    output: \S+/(\d{5})\.json", done.stdout, re.M)
    assert sorted(found, key=lambda pair: pair[1]) == [(f"tars/{n}.tar, tars/{n + 3}.tar", f"{n:05d}") for n in range(3)]
