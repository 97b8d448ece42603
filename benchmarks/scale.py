"""Manifest, copies, leak guard and the loader's start at the size of the paper's data, without its data.

    python benchmarks/scale.py --images 1000000 37000000 --folder FOLDER

Makes the ledgers, captions and sidecars of that many images of the sources of workflow/presets/paper.yaml (some 190 bytes an
image; the shards they describe are empty files), runs `python -m pipeline manifest` on them as the rule does, and then
what training does before its first batch. Numbers are made from an image's number alone: one in 33 has the bytes of an
earlier one, one in 50 a perceptual hash that differs from an earlier one's in two bits, one in 200 that of one of 2,000
much-copied pictures but for up to three bits, one in 20,000 is of the evaluation set; the others' hashes are random, which
real ones are not. The folder is emptied again. Prints JSON.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.artifacts import CAPTIONS, LEDGER, read_json, write_sidecar
from pipeline.config import Config, load, slice_for
from pipeline.fingerprint import ROOT

PRESET = ROOT / "workflow/presets/paper.yaml"
STAGE = "base_masked"  # the one that trains on most images
BAD = 0.05  # of the rows of a ledger
COPIES, NEAR, CLUSTERED, LEAKED = 1 / 33, 1 / 50, 1 / 200, 1 / 20_000
NEAR_BITS = 2  # filters.near_duplicates
CLUSTERS, EVALUATED = 2_000, 30_000
FIRST_CLUSTER, FIRST_EVALUATED = 1 << 40, 1 << 41  # numbers that no image of training has
WORDS = np.array(Path(__file__).read_text().split()[:400])
CAPTION_WORDS, CAPTION_POOL = 12, 50_000
VAE, TEXT = {"ref": "vae", "sha256": "0" * 64}, {"ref": "text", "sha256": "1" * 64}


def mixed(numbers: np.ndarray, salt: int) -> np.ndarray:
    """[N] uint64 that look random, always the same for a number: the finaliser of SplitMix64."""
    with np.errstate(over="ignore"):
        word = (numbers.astype(np.uint64) + np.uint64(salt + 1)) * np.uint64(0x9E3779B97F4A7C15)
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
            word = (word ^ (word >> np.uint64(shift))) * np.uint64(factor)
    return word ^ (word >> np.uint64(31))


def hex_strings(words: np.ndarray) -> pa.StringArray:
    """[N, count] uint64 to strings of 16 · count digits."""
    width = 16 * words.shape[1]
    digits = words.astype(">u8").tobytes().hex().encode()
    offsets = np.arange(0, width * (len(words) + 1), width, dtype=np.int32)
    return pa.StringArray.from_buffers(len(words), pa.py_buffer(offsets), pa.py_buffer(digits))


def sha256_of(numbers: np.ndarray) -> pa.StringArray:
    return hex_strings(np.stack([mixed(numbers, salt) for salt in range(4)], axis=1))


def bytes_and_look(first: int, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Numbers that stand for the bytes of each image [rows], and perceptual hashes [rows] uint64."""
    own = np.arange(first, first + rows, dtype=np.uint64)
    chance, earlier = mixed(own, 10) / 2.0**64, mixed(own, 11) % np.maximum(own, np.uint64(1))
    bounds = np.cumsum([COPIES, NEAR, CLUSTERED, LEAKED])
    copy, near, clustered, leaked = (chance < bounds[0], *((lo <= chance) & (chance < hi) for lo, hi in pairwise(bounds)))
    content = np.where(copy, earlier, np.where(leaked, FIRST_EVALUATED + mixed(own, 12) % np.uint64(EVALUATED), own))
    look = np.where(near, earlier, np.where(clustered, FIRST_CLUSTER + mixed(own, 12) % np.uint64(CLUSTERS), content))
    hashes = mixed(look, 20)
    for bit in range(3):
        flips = clustered | (near & (bit < 2))
        hashes ^= np.where(flips, np.uint64(1) << (mixed(own, 30 + bit) % np.uint64(64)), np.uint64(0))
    return content, hashes


def write_images(folder: Path, source: str, shard: int, first: int, rows: int, evaluated: bool = False) -> None:
    """Ledger and sidecar of one shard: `rows` rows, the images among them numbered from `first` on."""
    good = np.arange(rows) % round(1 / BAD) != 0
    stored = int(good.sum())
    numbers = np.arange(first, first + stored, dtype=np.uint64)
    content, hashes = (numbers, mixed(numbers, 20)) if evaluated else bytes_and_look(first, stored)
    place = pa.array(np.where(good, np.cumsum(good) - 1, 0), mask=~good)
    keys = keys_of(source, shard, rows)
    sides = [pa.array((256 + mixed(numbers, salt) % np.uint64(1500)).astype(np.int32)) for salt in (40, 41)]
    columns = {
        "key": keys,
        "origin": keys,
        "status": pa.array(np.where(good, "ok", "bad")),
        "reason": pa.array(np.where(good, "", "too_small"), mask=good),
        "sha256": sha256_of(content).take(place),
        "phash": hex_strings(hashes[:, None]).take(place),
        **{name: side.take(place) for name, side in zip(("width", "height"), sides, strict=True)},
        "captioned": pa.array(good),
        "license": pa.array(np.full(rows, "some licence")),
    }
    table = pa.table([columns.get(name, pa.nulls(rows, LEDGER.field(name).type)) for name in LEDGER.names], schema=LEDGER)
    at = folder / "data" / source / f"{shard:05d}.parquet"
    at.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, at)
    at.with_suffix(".tar").write_bytes(b"-")
    files = {"images": (at.with_suffix(".tar"), stored), "ledger": (at, rows)}
    write_sidecar(at.with_suffix(".json"), "images", files, {"source": source, "shard": shard})
    write_captions(folder, source, shard, keys.filter(pa.array(good)))


def keys_of(source: str, shard: int, rows: int) -> pa.Array:
    return pa.array([f"{source}_{shard:05d}_{row:06d}" for row in range(rows)])


def captions_pool() -> pa.Array:
    chosen = np.random.default_rng(5).integers(0, len(WORDS), (CAPTION_POOL, CAPTION_WORDS))
    return pa.array([" ".join(row) for row in WORDS[chosen]])


POOL = captions_pool()


def write_captions(folder: Path, source: str, shard: int, keys: pa.Array) -> None:
    """One caption an image, given. Those of the evaluation set are others, but for a hundred."""
    chosen = np.random.default_rng([6, shard]).integers(100, CAPTION_POOL, len(keys))
    captions = POOL.take(pa.array(chosen))
    if source == "coco_2014":
        captions = pa.array([f"{text} {n}" if n > 100 else POOL[n].as_py() for n, text in enumerate(captions.to_pylist())])
    columns = {"key": keys, "caption": captions}
    columns = [columns.get(name, pa.nulls(len(keys), CAPTIONS.field(name).type)) for name in CAPTIONS.names]
    at = folder / "captions" / source / f"{shard:05d}.parquet"
    at.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns, schema=CAPTIONS), at)
    write_sidecar(at.with_suffix(".json"), "captions", {"captions": (at, len(keys))}, {"mode": "keep"})


def write_encoded(folder: Path, source: str, shard: int, config: Config) -> None:
    """A sidecar as encode's, of files that hold nothing."""
    name, px = f"{shard:05d}", config.stages[STAGE].px
    made = {kind: read_json(folder / where / source / f"{name}.json") for kind, where in KINDS.items()}
    rows = made["captions"]["files"]["captions"]["rows"]
    files = {}
    for kind in (f"latents-{px}", "text"):
        file = folder / kind / source / f"{name}.arrow"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"-")
        files[kind] = (file, rows)
    links = {
        kind: {"path": f"../../{where}/{source}/{name}.json", "sha256": made[kind]["files"][kind]["sha256"]}
        for kind, where in KINDS.items()
    }
    latents = {str(px): {"shape": [4, px // 8, px // 8], "scaling_factor": 1.0, "bad_rows": {}}}
    text = {"shape": [77, 1024], "padding": "attend", "bad_rows": {}}
    info = {"source": source, "shard": name, **links, "vae": VAE, "text_encoder": TEXT, "latents": latents, "text": text}
    write_sidecar(folder / "encoded" / source / f"{name}.json", "encoded", files, info)


KINDS = {"images": "data", "captions": "captions"}


def make(folder: Path, images: int, config: Config) -> dict[str, list[Path]]:
    """Ledgers, captions and sidecars of some `images` images; returns the sidecars by option of the step."""
    wanted = {name: config.sources[name] for name in config.stage_sources(STAGE)}
    whole = sum(source.expect.images * source.expect.usable for source in wanted.values())
    encoded, first = [], 0
    for name, source in wanted.items():
        share = min(1.0, images / whole)
        shards, total = max(1, round(source.shards * share)), source.expect.images * source.expect.usable * images / whole
        for shard in range(shards):
            rows = round(total / shards / (1 - BAD))
            write_images(folder, name, shard, first, rows)
            write_encoded(folder, name, shard, config)
            encoded.append(folder / "encoded" / name / f"{shard:05d}.json")
            first += rows - -(-rows // round(1 / BAD))
    evaluation = config.evaluation.source
    write_images(folder, evaluation, 0, FIRST_EVALUATED, round(EVALUATED / (1 - BAD)), evaluated=True)
    sidecars = {kind: [folder / where / evaluation / "00000.json"] for kind, where in KINDS.items()}
    return {"--encoded": encoded, "--evaluation": sidecars["images"], "--evaluation-captions": sidecars["captions"]}


def timed(command: list[str]) -> dict[str, float]:
    """Run it; seconds of the clock and of the processor, and the most memory it had. Raises: SystemExit if it fails."""
    started = time.perf_counter()
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL) as process:
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"error: {command[:4]} … ended with {process.returncode}")
    return {
        "seconds": round(time.perf_counter() - started, 1),
        "processor_seconds": round(usage.ru_utime + usage.ru_stime, 1),
        "peak_gigabytes": round(usage.ru_maxrss * 1024 / 1e9, 2),
    }


def loader_start(manifest: Path) -> dict[str, float]:
    """What training does before its first batch: the manifest is read and the first 2,048 places of the order are known."""
    import psutil

    from pipeline.config.schema import Stage
    from pipeline.dataset import Manifest
    from pipeline.train.data import Samples

    before, started = psutil.Process().memory_info().rss, time.perf_counter()
    read = Manifest.read(manifest)
    samples = Samples(read, Stage(px=256, mask_ratio=0, images=2048, batch_images=2048), seed=0, name="scale")
    samples.stream.ahead(0, 2048), samples.stream.rows(0, 2048)
    seconds, after = time.perf_counter() - started, psutil.Process().memory_info().rss
    return {"seconds": round(seconds, 3), "bytes_a_sample": round((after - before) / read.samples, 2)}


def measure(images: int, parent: Path | None) -> dict[str, Any]:
    """Make, judge, read and remove the data of some `images` images."""
    folder = Path(tempfile.mkdtemp(prefix="scale-", dir=parent))
    try:
        (folder / "near.yaml").write_text(f"filters: {{near_duplicates: {NEAR_BITS}}}")
        config, started = load(ROOT / "config.yaml", PRESET, folder / "near.yaml"), time.perf_counter()
        sidecars = make(folder, images, config)
        made, out = round(time.perf_counter() - started, 1), folder / "manifests" / f"{STAGE}.json"
        options = [f"{option}={file}" for option, files in sidecars.items() for file in files]
        step = [sys.executable, "-m", "pipeline", "manifest", "--config", slice_for(config, "manifest", stage=STAGE)]
        manifest = timed([*step, *options, "--out", str(out)])
        loader = subprocess.run(
            [sys.executable, __file__, "--start", str(out)], cwd=ROOT, capture_output=True, text=True, check=True
        )
        value = read_json(out)
        return {
            "images": sum(count["collected"] for count in value["counts"].values()),
            "shards": len(value["shards"]),
            "seconds_to_make_the_data": made,
            "manifest": {**manifest, "microseconds_an_image": round(1e6 * manifest["seconds"] / images, 2)},
            "command_line_bytes": sum(len(option) + 1 for option in options),
            "trained": value["samples"],
            "left_out": _summed(value["counts"]),
            "bytes": {name: record["bytes"] for name, record in value["files"].items()} | {"manifest": out.stat().st_size},
            "loader_start": json.loads(loader.stdout),
        }
    finally:
        shutil.rmtree(folder)


def _summed(counts: dict[str, Any]) -> dict[str, int]:
    reasons = sorted({reason for count in counts.values() for reason in count["left_out"]})
    return {reason: sum(count["left_out"].get(reason, 0) for count in counts.values()) for reason in reasons}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, nargs="+", default=[1_000_000], help="how many, one run each")
    parser.add_argument("--folder", type=Path, help="where there is room: 190 bytes an image")
    parser.add_argument("--start", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.start:
        print(json.dumps(loader_start(options.start)))
        return
    print(json.dumps([measure(images, options.folder) for images in options.images], indent=1))


if __name__ == "__main__":
    main()
