"""A captioner that is killed in the middle of a shard, against one that never was."""

import json
import shutil
import signal
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pipeline.artifacts import write_json
from pipeline.config.schema import Captioning
from pipeline.config.steps import CaptionSlice
from tests.training import command_line, wait_until
from tests.unit.encode.small_shards import picture, write_shard
from tests.unit.frozen.captioner_models import save_llava

IMAGES = {f"k{n:02}": picture(n, (40 + 4 * (n % 5), 48)) for n in range(30)}
BATCH = 2


class Shard:
    """Starts `python -m pipeline caption` on one shard, in processes and folders of their own."""

    def __init__(self, server, folder: Path) -> None:
        self._server, self.folder = server, folder
        self._images = write_shard(folder / "data" / "00000.json", IMAGES)
        wanted = Captioning(prompts=["Describe this image"], samples=2, temperature=1.0, max_tokens=30)
        slice_ = CaptionSlice(mode="write", captioner=str(save_llava(folder / "model")), captioning=wanted)
        self._config = slice_.to_json()
        runtime = {"device": "cpu", "caption_batch": BATCH}
        write_json(
            folder / "settings.json", {"runtime": runtime, "validation": {}, "report": {}, "evaluation": None, "sources": {}}
        )

    def start(self, name: str):
        (self.folder / name).mkdir(exist_ok=True)
        arguments = ["caption", "--config", self._config, "--settings", self.folder / "settings.json"]
        arguments += ["--images", self._images, "--work", "work", "--out", "out/00000.json"]
        where = ([str(value) for value in arguments], {}, self.folder / name, self.folder / name / "log")
        process = self._server.Process(target=command_line, args=where)
        process.start()
        return process

    def run(self, name: str) -> Path:
        """To the end; returns the table."""
        process = self.start(name)
        process.join(60)
        assert process.exitcode == 0, (self.folder / name / "log").read_text()
        assert not self.journal(name).exists()
        return self.folder / name / "out" / "00000.parquet"

    def kill(self, name: str, batches: int) -> None:
        """Once the journal has so many batches."""
        process = self.start(name)
        wait_until(process, lambda: len(self.batches(name)) >= batches)
        process.kill()
        process.join(60)
        assert process.exitcode == -signal.SIGKILL, "over before it was killed"
        assert len(self.batches(name)) < len(IMAGES) // BATCH and not (self.folder / name / "out").exists()

    def journal(self, name: str) -> Path:
        return self.folder / name / "work" / "00000.jsonl"

    def batches(self, name: str) -> list[dict]:
        """Those of the journal that are whole."""
        lines = self.journal(name).read_bytes().split(b"\n")[1:-1] if self.journal(name).exists() else []
        return [json.loads(line) for line in lines]


@pytest.fixture
def captioning(server, tmp_path):
    return Shard(server, tmp_path)


@pytest.mark.timeout(300)  # on a machine that has much else to do
def test_killed_in_the_middle_a_shard_ends_with_the_same_bytes_and_captions_no_image_twice(captioning):
    undisturbed = captioning.run("undisturbed")
    captioning.kill("run", batches=3)
    before = captioning.batches("run")
    with open(captioning.journal("run"), "ab") as journal:
        journal.write(b'{"k29": [[0, "a cut ta')
    captioning.kill("run", batches=len(before) + 2)
    after = captioning.batches("run")
    assert after[: len(before)] == before
    keys = [key for batch in after for key in batch]
    assert keys == list(IMAGES)[: len(keys)] and len(keys) >= BATCH * 5

    # Captions that are in the journal are not written again: other words there are the ones that come out.
    shutil.copytree(captioning.folder / "run", captioning.folder / "marked")
    head, first, rest = captioning.journal("marked").read_bytes().split(b"\n", 2)
    marked = {key: [[*caption[:1], "MARKED", False] for caption in captions] for key, captions in json.loads(first).items()}
    captioning.journal("marked").write_bytes(b"\n".join([head, json.dumps(marked).encode(), rest]))
    rows, expected = (pq.read_table(file).to_pylist() for file in (captioning.run("marked"), undisturbed))
    assert [row["caption"] for row in rows[:4]] == ["MARKED"] * 4 and rows[4:] == expected[4:]

    assert captioning.run("run").read_bytes() == undisturbed.read_bytes()
    sidecars = [(captioning.folder / name / "out" / "00000.json").read_bytes() for name in ("run", "undisturbed")]
    assert sidecars[0] == sidecars[1]
    told = f"{len(keys)} of {len(IMAGES)} images have their captions"
    assert told in (captioning.folder / "run" / "log").read_text()
