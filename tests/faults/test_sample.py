"""A job that draws samples and is killed in the middle, against one that never was."""

import hashlib
import signal

import pytest

from pipeline.artifacts import read_json, write_json
from pipeline.config.steps import EvaluateSlice
from tests.training import command_line, wait_until
from tests.unit.evaluate.conftest import frozen, shards, stage  # noqa: F401

IMAGES, BATCH = 11, 1


class Job:
    """Starts `python -m pipeline sample`, in processes and folders of their own."""

    def __init__(self, server, folder, frozen, shards, stage):  # noqa: F811
        self._server, self.folder = server, folder
        evaluation = {"source": "coco", "images": IMAGES, "features": frozen["clip"], "clip_score": frozen["clip"]}
        evaluation |= {"steps": 30, "guidance": 2.0}
        models = {"vae": frozen["vae"], "text_encoder": frozen["clip"], "captioner": frozen["clip"]}
        config = EvaluateSlice(evaluation=evaluation, models=models, seed=5).to_json()
        runtime = {"device": "cpu", "sample_batch": BATCH}
        rest = {"validation": {}, "report": {}, "evaluation": None, "sources": {}}
        write_json(folder / "settings.json", {"runtime": runtime, **rest})
        sidecars = [f"--{name}={file}" for name, files in zip(("images", "captions"), shards, strict=True) for file in files]
        self._arguments = ["sample", "--config", config, "--settings", folder / "settings.json", *sidecars, "--weights", stage]

    def start(self, name, part):
        (self.folder / name).mkdir(exist_ok=True)
        arguments = [*self._arguments, "--part", part, "--work", "work", "--out", self.record(name, part)]
        where = ([str(value) for value in arguments], {}, self.folder / name, self.folder / name / "log")
        process = self._server.Process(target=command_line, args=where)
        process.start()
        return process

    def ends(self, name, process):
        process.join(120)
        assert process.exitcode == 0, (self.folder / name / "log").read_text()

    def record(self, name, part):
        return self.folder / name / "out" / f"{part.replace('/', '-of-')}.json"

    def drawn(self, name):
        return {file.name: file for file in (self.folder / name).rglob("*.png") if not file.name.startswith(".")}

    def pictures(self, name):
        return {key: file.read_bytes() for key, file in self.drawn(name).items()}


@pytest.fixture
def job(server, tmp_path, frozen, shards, stage):  # noqa: F811
    return Job(server, tmp_path, frozen, shards, stage)


@pytest.mark.timeout(400)  # on a machine that has much else to do
def test_killed_in_the_middle_a_job_draws_what_is_missing_and_two_at_once_draw_what_one_does(job):
    job.ends("undisturbed", job.start("undisturbed", "1/1"))
    whole = job.pictures("undisturbed")
    assert len(whole) == IMAGES == len(set(whole.values()))

    process = job.start("run", "1/2")
    wait_until(process, lambda: len(job.drawn("run")) >= 2)
    process.kill()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL, "over before it was killed"
    found, times = job.drawn("run"), {name: file.stat().st_mtime_ns for name, file in job.drawn("run").items()}
    assert 2 <= len(found) < 6 and not job.record("run", "1/2").exists()
    assert all(whole[name] == content for name, content in job.pictures("run").items())

    both = [job.start("run", part) for part in ("2/2", "1/2")]
    for process in both:
        job.ends("run", process)
    assert job.pictures("run") == whole
    assert times == {name: job.drawn("run")[name].stat().st_mtime_ns for name in times}
    assert f"{len(found)}/6 images" in (job.folder / "run" / "log").read_text()  # where the progress begins

    records = [read_json(job.record("run", part)) for part in ("1/2", "2/2")]
    hashes = {str(int(name[:6])): hashlib.sha256(content).hexdigest() for name, content in whole.items()}
    first, second = (record["sha256"]["samples"] for record in records)
    assert first | second == hashes and [record["count"] for record in records] == [6, 5]
