import io
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image

from pipeline.encode.decoding import MOST_WORKERS, PIECE, WORTH_A_WORKER, Decoder, workers_for
from pipeline.errors import UserError
from pipeline.frozen.pixels import square
from tests.unit.encode.small_shards import picture

TAR = Path("data/photos/00000.tar")


def jpeg(number: int, size: tuple[int, int] = (90, 70)) -> bytes:
    data = io.BytesIO()
    picture(number, size).save(data, "JPEG", quality=90)
    return data.getvalue()


SAMPLES = [(f"k{n}", jpeg(n, (60 + n, 120 - n))) for n in range(45)]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("batch", [5, 20, 64])
def test_batches_hold_the_squares_of_the_images_in_order(workers: int, batch: int) -> None:
    with Decoder(workers) as decoder:
        found = list(decoder.batches(TAR, iter(SAMPLES), [16, 32], batch))
    assert [len(part.keys) for part in found] == [batch] * (45 // batch) + [45 % batch] * (45 % batch > 0)
    assert [key for part in found for key in part.keys] == [key for key, _ in SAMPLES]
    for px in (16, 32):
        pixels = np.concatenate([part.pixels[px] for part in found])
        whole = [np.asarray(square(Image.open(io.BytesIO(data)), px)) for _, data in SAMPLES]
        assert pixels.dtype == np.uint8 and np.array_equal(pixels, np.stack(whole))


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_does_not_decode_is_named(workers: int) -> None:
    samples = [*SAMPLES[:3], ("broken", SAMPLES[3][1][:200]), *SAMPLES[4:]]
    with Decoder(workers) as decoder, pytest.raises(UserError, match=r"00000\.tar: image 'broken' does not decode"):
        list(decoder.batches(TAR, iter(samples), [16], 8))


def test_images_are_read_no_further_than_there_is_work() -> None:
    read = []

    def endless():
        while True:
            read.append(1)
            yield SAMPLES[0]

    with Decoder(1) as decoder:
        batches = decoder.batches(TAR, endless(), [16], 2 * PIECE)
        next(batches), next(batches)
    assert len(read) <= (2 * 2 + 2 + 2 + 1) * PIECE  # two batches, one that lies ready, and two pieces for the worker


def test_a_worker_that_is_killed_is_an_error() -> None:
    def samples():
        for number, sample in enumerate(SAMPLES * 20):
            if number == 10 * PIECE:
                for child in psutil.Process().children():
                    if "spawn_main" in " ".join(child.cmdline()):
                        child.kill()
            yield sample

    with Decoder(1) as decoder, pytest.raises(UserError, match=r"00000\.tar: a process .* was killed.*decode_workers"):
        list(decoder.batches(TAR, samples(), [16], 8))


def test_workers_end_with_the_process_that_started_them(tmp_path: Path) -> None:
    """Also when that one had no time to tell them."""
    script = tmp_path / "decode.py"
    script.write_text(
        "from pipeline.encode.decoding import Decoder\n"
        "from tests.unit.encode.test_decoding import SAMPLES, TAR\n"
        "import time\n"
        "if __name__ == '__main__':\n"
        "    with Decoder(2) as decoder:\n"
        "        next(decoder.batches(TAR, iter(SAMPLES), [16], 32))\n"
        "        print('started', flush=True)\n"
        "        time.sleep(60)\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.getcwd()}
    process = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True, env=environment)
    assert process.stdout.readline() == "started\n"
    children = psutil.Process(process.pid).children(recursive=True)
    assert len(children) >= 2
    process.send_signal(signal.SIGKILL)
    process.wait()
    _, alive = psutil.wait_procs(children, timeout=20)
    assert not alive


def test_workers_by_the_cores_and_by_what_the_images_are_worth() -> None:
    assert workers_for(5, 3) == 5 and workers_for(0, 10**6) == 0
    assert workers_for(None, WORTH_A_WORKER - 1) == 0 and workers_for(None, WORTH_A_WORKER) == 1
    assert 1 <= workers_for(None, 10**6) <= MOST_WORKERS


def test_a_worker_imports_no_torch() -> None:
    code = "import sys, pipeline.encode.decoding; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
