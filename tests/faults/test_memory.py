"""A limit of memory that a step hits in the middle of its work."""

import resource
import shutil
from pathlib import Path

import pytest

from tests.chain import files, one_line


def little(module, name):
    """From the call of `module.name` on there is one more megabyte."""
    whole = getattr(module, name)

    def limited(*arguments, **keywords):
        size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (size + 2**20, resource.RLIM_INFINITY))
        return whole(*arguments, **keywords)

    setattr(module, name, limited)


def while_encoding():
    from pipeline.encode import latents

    little(latents, "encode_shard")


def while_captioning():
    from pipeline.caption import writing

    little(writing, "_captions")


@pytest.mark.parametrize(
    ("command", "gone", "patch"),
    [
        ("encode encoded/scenes/", "latents/scenes", while_encoding),
        ("caption captions/scenes/", "captions/scenes", while_captioning),
    ],
    ids=["encode", "caption"],
)
def test_it_says_so_and_completes_when_there_is_more(chain, whole, tmp_path, command, gone, patch):
    folder, step = chain.copy(whole, tmp_path.name), next(step for step in chain.steps if step.name.startswith(command))
    shutil.rmtree(folder / "results" / gone)
    code, told = chain.run(step, folder, patch)
    assert code == 1 and "out of memory" in one_line(told) and "the same command goes on" in one_line(told)
    chain.succeeds(step, folder)
    assert files(folder) == files(whole)
