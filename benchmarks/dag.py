"""How the time and memory of planning a run grow with its shards.

    python benchmarks/dag.py --shards 100 1000 10000 --finish 100 --folder FOLDER

Builds the graph of workflow/presets/paper.yaml by `snakemake --dry-run` in a copy of the project: with sources of that many
shards in its stead, as it is, and with two of its sources as local archives. To `--finish`: then again with every output there
and recorded, as before a run that goes on, by empty files and `snakemake --touch`, which takes long where there are thousands
of jobs. Prints a line of JSON for each.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml

from pipeline.config import load
from pipeline.fingerprint import ROOT

PRESET = Path("workflow/presets/paper.yaml")
COPIED = ("pipeline", "workflow", "envs", "Snakefile", "config.yaml")
A_SOURCE = 2000  # shards at most
LOCAL = {"cc12m": ("path", "data/cc12m-{0000..2175}.tar", 2176), "diffusiondb": ("files", "data/part-{00000..13999}.zip", 14000)}


def sources_of(shards: int) -> dict[str, Any]:
    """An overlay in which every stage trains on `shards` shards, in as few sources of equal size as may be."""
    count = -(-shards // A_SOURCE)
    path = "hf://datasets/owner/name@0123456789abcdef0123456789abcdef01234567/{}-{{0000..1999}}.tar"
    made = {f"part_{n}": {"kind": "webdataset", "path": path.format(n), "shards": shards // count} for n in range(count)}
    stages = load(ROOT / "config.yaml", ROOT / PRESET).schedule
    return {"sources": made, "stages": {stage: {"sources": list(made)} for stage in stages}}


def local_archives(folder: Path) -> dict[str, Any]:
    """An overlay that names small files made in `folder`/data as the archives of two sources."""
    (folder / "data").mkdir(exist_ok=True)
    for _, pattern, count in LOCAL.values():
        start, digits, end = re.match(r"(.*)\{(0+)\.\.\d+\}(.*)", pattern).groups()
        for number in range(count):
            (folder / f"{start}{number:0{len(digits)}d}{end}").write_bytes(b"-")
    return {"sources": {name: {key: pattern} for name, (key, pattern, _) in LOCAL.items()}}


def program(folder: Path, overlay: dict[str, Any] | None, *arguments: str) -> list[str]:
    files = [str(PRESET)]
    if overlay:
        (folder / "overlay.yaml").write_text(yaml.safe_dump(overlay))
        files.append("overlay.yaml")
    return ["snakemake", "--cores", "2", "--configfile", *files, *arguments, "--", "all"]


def timed(command: list[str], folder: Path) -> tuple[dict[str, float], str]:
    """Run it; seconds of the clock and of the processor, the most memory it had, and what it said. Raises: SystemExit."""
    started = time.perf_counter()
    with open(folder / "said.txt", "w+") as said, subprocess.Popen(command, cwd=folder, stdout=said, stderr=said) as process:
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        said.seek(0)
        text = said.read()
    if process.returncode:
        sys.exit(f"error: {' '.join(command)}\n{text[-2000:]}")
    seconds = {"seconds": time.perf_counter() - started, "processor_seconds": usage.ru_utime + usage.ru_stime}
    return {**{name: round(value, 1) for name, value in seconds.items()}, "megabytes": round(usage.ru_maxrss * 1024 / 1e6)}, text


def planned(folder: Path, overlay: dict[str, Any] | None, finish: bool) -> dict[str, Any]:
    """Figures of a dry run before anything is made and, to `finish`, after everything was."""
    dry = program(folder, overlay, "--dry-run", "--quiet", "all")
    before, text = timed(dry, folder)
    found = {"jobs": int(re.search(r"^total +(\d+)", text, re.M)[1]), "before": before}
    if finish:
        for file in outputs(folder, overlay):
            file.parent.mkdir(parents=True, exist_ok=True)
            file.touch()
        found["touch"], _ = timed(program(folder, overlay, "--touch", "--quiet", "all"), folder)
        found["finished"], text = timed(dry, folder)
        assert "Nothing to be done" in text, text[-2000:]
        shutil.rmtree(folder / "results"), shutil.rmtree(folder / ".snakemake")
    return found


def outputs(folder: Path, overlay: dict[str, Any] | None) -> list[Path]:
    _, text = timed(program(folder, overlay, "--summary"), folder)
    return [folder / line.split("\t")[0] for line in text.splitlines() if line.startswith("results/")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shards", type=int, nargs="+", default=[100, 1000], help="how many in all, one run each")
    parser.add_argument("--finish", type=int, nargs="*", default=[], help="those of them to plan once more when all is done")
    parser.add_argument("--folder", type=Path, help="for the copy of the project")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="dag-", dir=options.folder))
    try:
        for name in COPIED:
            copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
            copy(ROOT / name, folder / name)
        plan, _ = timed([sys.executable, "-m", "pipeline", "plan", "--configfile", str(PRESET)], folder)
        show("paper", planned(folder, None, finish=False) | {"plan": plan})
        for shards in options.shards:
            show(f"{shards} shards", planned(folder, sources_of(shards), shards in options.finish))
        show("paper, two sources as local archives", planned(folder, local_archives(folder), finish=False))
    finally:
        shutil.rmtree(folder)


def show(name: str, found: dict[str, Any]) -> None:
    print(json.dumps({"what": name, **found}), flush=True)


if __name__ == "__main__":
    main()
