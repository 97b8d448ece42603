"""What dies on a cluster: the same command ends in the same weights, and no shard that is complete is made again."""

import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest

from pipeline.lock import Lock
from tests.slurm.conftest import Job, Run, until

pytestmark = pytest.mark.timeout(1800)  # on a busy machine; minutes on a quiet one
IMAGES = 4800
OVERLAY = """
sources: {scenes: {count: 96, shards: 3}}
stages: {low_masked: {images: IMAGES}}
schedule: [low_masked]
evaluation: {geneval: null, curve: {images: 0}}
runtime: {gpus: 1, checkpoint_every_images: 320, samples_every_images: 100000}
""".replace("IMAGES", str(IMAGES))
OUT = Path("results/train/low_masked")
WORK = Path("results/work/train/low_masked")
DEADLINE = 57  # seconds that a training lives that may take a minute


@pytest.fixture(scope="module")
def run(make_run: Callable[..., Run], tmp_path_factory: pytest.TempPathFactory) -> Run:
    return make_run(tmp_path_factory.mktemp("faults") / "project", OVERLAY)


def complete(run: Run) -> dict[str, int]:
    """When each shard was made, by the records of the processes: Snakemake touches the results themselves."""
    records = (run.folder / "results/work/processes").glob("*.json")
    return {file.stem: file.stat().st_mtime_ns for file in records if re.match("collect|caption|encode", file.stem)}


def at_work(run: Run, step: str) -> list[psutil.Process]:
    """Those that hold the lock of what they make."""
    holders = [Lock(file).read() for file in (run.folder / "results/work/locks").glob(f"{step}-*.lock")]
    return [psutil.Process(holder.pid) for holder in holders if holder and not holder.ended]


@contextmanager
def frozen(processes: list[psutil.Process]) -> Iterator[None]:
    """Keeps them from coming to their end too early."""
    for process in processes:
        process.suspend()
    yield
    for process in processes:
        process.resume()


def test_the_driver_is_killed_while_shards_are_made(run):
    """Its jobs live on. Those of the next driver wait for them, and nothing is made twice."""
    driver = run.start()
    steps = until(lambda: at_work(run, "encode"), 400, "no shard is encoded")
    with frozen(steps):
        driver.kill()
        before = complete(run)
        assert before and at_work(run, "encode")
        again = run.start("--until", "encode")
        until(lambda: run.logs("encode", "waiting for its end"), 400, "nobody waits")
    assert again.wait() == 0, run.said()[-6000:]
    assert before.items() <= complete(run).items()
    assert run.logs("encode", "nothing is left to do")


class Training:
    """The training of a run. Between the steps of a test it stands still, so that it never comes to its end too early."""

    def __init__(self, run: Run) -> None:
        self._run, self._work = run, run.folder / WORK

    def process(self) -> psutil.Process:
        """The older one, if another waits for it."""
        return until(lambda: self._run.cluster.steps("train"), 300, f"nothing trains\n{self._run.said()[-3000:]}")[0]

    def job(self) -> Job:
        number = self.process().environ()["SLURM_JOB_ID"]
        return next(job for job in self._run.jobs("train") if job.number == number)

    def resume(self) -> None:
        with suppress(psutil.NoSuchProcess):
            self.process().resume()

    def newest(self) -> int:
        """Images of the newest checkpoint."""
        return max((int(file.parent.name) for file in self._work.glob("*/000000??????/state.json")), default=0)

    def began_at(self) -> int:
        """Images at the first line of the log, which is of the last attempt alone."""
        log = (self._run.folder / "results/logs/train/low_masked.log").read_text()
        return int(re.search(rf"(\d+)/{IMAGES} images", log)[1])

    def goes_on(self) -> None:
        """Until there is another checkpoint."""
        before = self.newest()
        until(lambda: self.resume() or self.newest() > before, 300, f"no checkpoint after {before} images")
        self.process().suspend()
        assert not (self._run.folder / OUT / "summary.json").exists(), "it has come to its end undisturbed"


def test_training_ends_in_the_same_weights_whatever_dies(run, tmp_path):
    cluster, training, before = run.cluster, Training(run), complete(run)
    driver = run.start()
    training.goes_on()
    assert training.process().environ()["CUDA_VISIBLE_DEVICES"] in ("0", "1", "2", "3")

    first = training.job()
    cluster.kill_slurmd(first.node)  # the job does not notice
    cluster.start_node(first.node)
    training.goes_on()
    assert training.job() == first and cluster.states()[first.node] in ("mix", "alloc")

    cluster.update_nodes("drain")  # a job goes on, and none starts
    training.goes_on()
    cluster.command("scancel", first.number)
    second = until(lambda: run.jobs("train", "PENDING"), 300, what="nothing is submitted after scancel")[0]
    assert run.state(first) == "CANCELLED" and set(cluster.states().values()) <= {"drain", "drng"}
    saved = training.newest()
    cluster.update_nodes("resume")
    training.goes_on()
    assert training.job().number == second.number and training.began_at() >= saved > 0

    node = training.job().node
    cluster.lose_node(node)  # SLURM starts the job again, by the same number
    until(lambda: "Restarts=1" in cluster.command("scontrol", "show", "job", second.number), what="no requeue")
    cluster.start_node(node)
    training.goes_on()
    assert training.job().number == second.number

    driver.kill()  # its job lives on, and the next driver's waits for it
    run.give_training("1")
    driver = run.start()
    until(lambda: run.logs("train", "waiting for its end"), 300, "nobody waits")
    orphan = training.process()
    cluster.command("scancel", second.number)
    assert not psutil.wait_procs([orphan], 120)[1]

    training.goes_on()
    last = training.job()
    time.sleep(max(0.0, training.process().create_time() + DEADLINE - time.time()))
    training.resume()  # its minute is over: it saves, and is submitted again
    assert driver.wait() == 0, run.said()[-6000:]
    assert run.state(last) == "FAILED" and "stopped by deadline at" in run.said()
    assert before.items() <= complete(run).items()
    assert (run.folder / "results/fid_coco.json").exists() and "Nothing to be done" in run.finish()

    made = weights(run)
    shutil.move(run.folder / WORK, tmp_path)
    shutil.rmtree(run.folder / OUT)
    run.give_training("24h")
    run.finish(target=f"{OUT}/summary.json")
    assert weights(run) == made


def weights(run: Run) -> list[bytes]:
    return [(run.folder / OUT / f"{name}.safetensors").read_bytes() for name in ("model", "ema", "optimizer")]
