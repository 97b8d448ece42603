"""Time the official MicroDiT and this project's against each other: `python benchmarks/compare_official.py --official CHECKOUT`.

CHECKOUT is your own copy of github.com/SonyResearch/micro_diffusion (Apache-2.0); nothing of it is kept here. Two workers,
one a model, hold the same weights and the same batch and take turns, so that never both compute and noise on the machine
falls on both. Before any timing their outputs and gradients must agree in float32, with and without the mask.

A round is one step of each: forward, backward, clipping, AdamW. Each side trains as its own code does. Official: AdamW as
torch defaults to it; on a GPU bf16 autocast, LayerNorms in bf16, network and loss compiled as one. Ours: fused AdamW; on a
GPU bf16 autocast, compiled blocks; on a CPU freed memory that stays with the process. A large matmul is timed in every
round. Neither draws its mask or its noise: those are inputs, which both get. Gradient
accumulation and sharding are left out.
"""

import argparse
import datetime
import hashlib
import json
import math
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict
from itertools import product
from pathlib import Path
from statistics import median, quantiles
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import psutil

from benchmarks.official_worker import OFFICIAL_NAMES, Case
from pipeline.errors import UserError
from pipeline.model import PRESETS, parameter_count, training_flops

ROOT = Path(__file__).resolve().parents[1]
NETWORK_FILES = ("micro_diffusion/models/dit.py", "micro_diffusion/models/utils.py")
FLOAT32_LIMITS = {"cpu": 2e-6, "cuda": 1e-5}  # a GPU's matmuls sum in another order for every shape and layout
GRADIENT_LIMIT = 1e-4  # of the loss and each parameter's gradient norm: long sums, on a GPU in another order every time
# bf16 keeps 8 bits, so one rounding is 0.2-0.4 %; the two sides round in other places (LayerNorms, fused kernels) for some
# 30 blocks, and a token on the edge of an expert's capacity may be routed otherwise.
BFLOAT16_LIMIT = 5e-2


class Side:
    """The parent's end of one worker; `side.step()` asks and waits for the answer."""

    def __init__(self, role: str, python: str, checkout: Path) -> None:
        self.role = role
        command = [python, str(Path(__file__).with_name("official_worker.py")), role, str(checkout)]
        try:
            self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        except OSError as error:
            raise UserError(
                f"{python}: {error.strerror}; give --official-python a Python with the official code's packages"
            ) from error

    def ask(self, do: str, **values: Any) -> Any:
        """Raises UserError with the worker's own line, or if it died."""
        try:
            print(json.dumps({"do": do, **values}), file=self.process.stdin, flush=True)
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            code = self.process.wait()
            raise UserError(
                f"the {self.role} worker ended at '{do}' with exit code {code}; its last words are above (-9: no memory)"
            )
        answer = json.loads(line)
        if "error" in answer:
            raise UserError(answer["error"])
        return answer["answer"]

    def close(self) -> None:
        with suppress(BrokenPipeError):
            self.process.stdin.close()
        self.process.wait()


def choose_work(wanted: str, parameters: int, room: int) -> str:
    """`auto`: whole steps if both sides' states fit into `room` bytes, else forward and backward alone.

    Float32 weights and two moments a side, gradients on one side at a time, a fifth more for activations.
    Raises UserError if not even the weights and gradients fit.
    """
    need = {"step": 1.2 * 28 * parameters, "backward": 1.2 * 12 * parameters}
    if wanted != "auto":
        return wanted
    for work, size in need.items():
        if size <= room:
            return work
    raise UserError(
        f"two models need {need['backward'] / 1e9:.0f} GB of memory and {room / 1e9:.0f} GB are free; take a smaller --arch"
    )


def spread(official: list[float], ours: list[float]) -> dict[str, float]:
    """Official seconds over ours, paired by round: above 1 ours is faster. Median, quartiles and ends."""
    ratios = [a / b for a, b in zip(official, ours, strict=True)]
    low, _, high = quantiles(ratios, n=4, method="inclusive") if len(ratios) > 1 else ratios * 3
    return {"median": median(ratios), "low": low, "high": high, "min": min(ratios), "max": max(ratios)}


def largest_difference(ours: list[float], official: list[float]) -> float:
    """The largest |a - b| / |b| of two lists; NaN if any is, 0 where both are zero."""
    ratios = [abs(a - b) / abs(b) if b else math.inf for a, b in zip(ours, official, strict=True) if a or b]
    return math.nan if any(map(math.isnan, ratios)) else max(ratios, default=0.0)


def faults(errors: dict[str, float], device: str) -> list[str]:
    """One line for each error above its limit; a NaN is above every limit."""
    limits = {"float32": FLOAT32_LIMITS[device], "bfloat16": BFLOAT16_LIMIT, "gradient": GRADIENT_LIMIT}
    limit = {name: limits[name.split()[0]] for name in errors}
    return [
        f"{name} differs by {error:.1e}, above {limit[name]:.0e}" for name, error in errors.items() if not error <= limit[name]
    ]


def check(case: Case, ours: Side, official: Side, folder: Path) -> dict[str, float]:
    """Relative errors of outputs and gradients, ours against official; the keys say what was compared."""
    errors = {}
    for mask, precision in product(sorted({0.0, case.mask}), sorted({"float32", case.precision}, reverse=True)):
        paths = {side.role: str(folder / f"{side.role}.output") for side in (official, ours)}
        for side in (official, ours):
            side.ask("forward", mask=mask, precision=precision, path=paths[side.role])
        errors[f"{precision} forward, mask {mask:g}"] = ours.ask("error", **paths)
    errors["gradient norms"] = largest_difference(*(side.ask("gradients") for side in (ours, official)))
    demand(case, errors)
    return errors


def demand(case: Case, errors: dict[str, float]) -> None:
    """Raises UserError for the first error above its limit."""
    for fault in faults(errors, case.device):
        raise UserError(f"{case.arch}, {case.px} px, mask {case.mask:g}: {fault}; the two models do not compute the same")


def compare(case: Case, ours: Side, official: Side, folder: Path, steps: int, warmup: int) -> dict[str, Any]:
    """One line of the table. Raises UserError if the two do not compute the same."""
    path = folder / f"{case.arch}-{case.px}.safetensors"
    if not path.exists():
        ours.ask("weights", case=asdict(case), path=str(path))
    for side in (official, ours):
        side.ask("load", case=asdict(case), path=str(path))
    errors = check(case, ours, official, folder)
    rounds = [(official.ask("step"), ours.ask("step"), ours.ask("large_matmul")) for _ in range(warmup + steps)]
    # In the very first step both sides still have the same weights; here ours is compiled, if it is to be.
    first = {f"{case.precision} loss of a step": largest_difference([rounds[0][1]["loss"]], [rounds[0][0]["loss"]])}
    demand(case, first)
    seconds = {role: [turns[i]["seconds"] for turns in rounds[warmup:]] for i, role in enumerate(("official", "ours"))}
    peaks = [turns[2] for turns in rounds[warmup:]]
    flops = case.images * training_flops(case.config, case.mask)
    return {
        **asdict(case),
        "tokens": case.config.num_tokens,
        "errors": {**errors, **first},
        "seconds": seconds,
        "ratio": spread(seconds["official"], seconds["ours"]),
        "large_matmul_tflops": median(peaks) / 1e12,
        "share_of_large_matmul": {
            role: median(flops / (took * peak) for took, peak in zip(seconds[role], peaks, strict=True)) for role in seconds
        },
    }


def table(rows: list[dict[str, Any]]) -> str:
    """The results for reading; the ratio is official time over ours, the shares are those of a large matmul."""
    lines = [f"arch   tokens  mask images work     {'official s':>10} {'ours s':>8}  ratio (middle half)  shares     error"]
    for row in rows:
        times, ratio = {role: median(values) for role, values in row["seconds"].items()}, row["ratio"]
        error = row["errors"][f"float32 forward, mask {row['mask']:g}"]
        middle = f"{ratio['median']:5.2f} ({ratio['low']:.2f}-{ratio['high']:.2f})"
        shares = "{official:3.0%} {ours:4.0%}".format(**row["share_of_large_matmul"])
        lines.append(
            f"{row['arch']:6} {row['tokens']:6} {row['mask']:5g} {row['images']:6} {row['work']:8} "
            f"{times['official']:10.3f} {times['ours']:8.3f}  {middle:19}  {shares:9}  {error:.1e}"
        )
    return "\n".join(lines)


def provenance(checkout: Path, ours: dict[str, Any], official: dict[str, Any]) -> dict[str, Any]:
    """What was run where."""
    commit = subprocess.run(["git", "describe", "--always", "--dirty", "--abbrev=12"], cwd=ROOT, capture_output=True, text=True)
    network = b"".join((checkout / name).read_bytes() for name in NETWORK_FILES)
    return {
        "command": shlex.join(["python", "benchmarks/compare_official.py", *sys.argv[1:]]),
        "date": datetime.date.today().isoformat(),
        "commit": commit.stdout.strip(),
        "official_network_sha256": hashlib.sha256(network).hexdigest(),
        "device": ours["name"],
        "threads": ours["threads"],
        "torch": {"ours": ours["torch"], "official": official["torch"]},
    }


def cases(options: argparse.Namespace, device: str, room: int) -> Iterator[Case]:
    """Every combination asked for; `auto` settled by the device and its free memory."""
    precision = {"cuda": "bfloat16", "cpu": "float32"}[device] if options.precision == "auto" else options.precision
    compiled = device == "cuda" if options.compile == "auto" else options.compile == "on"
    for arch, px, mask in product(options.arch, options.px, options.mask):
        work = choose_work(options.work, parameter_count(PRESETS[arch]), room)
        yield Case(arch, px, mask, options.images, work, device, precision, compiled, options.seed)


def count(text: str) -> int:
    """A whole number of at least 1, for argparse."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text}; give a whole number of at least 1")
    return int(text)


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--official", type=Path, required=True, metavar="CHECKOUT", help="copy of SonyResearch/micro_diffusion")
    p.add_argument("--official-python", default=sys.executable, help="interpreter with the official code's packages (this one)")
    p.add_argument("--allow-different-torch", action="store_true", help="compare although the two torch versions differ")
    p.add_argument("--arch", nargs="+", choices=OFFICIAL_NAMES, default=["tiny2"])
    p.add_argument("--px", nargs="+", type=int, choices=(256, 512), default=[256], help="256: 256 tokens; 512: 1,024 tokens")
    p.add_argument("--mask", nargs="+", type=float, default=[0.75, 0.0], help="share of the tokens that is dropped")
    p.add_argument("--images", type=count, default=8, help="batch of one step (8)")
    p.add_argument("--steps", type=count, default=5, help="timed rounds (5)")
    p.add_argument("--warmup", type=count, default=3, help="rounds before them; compilation falls into the first two (3)")
    p.add_argument("--work", choices=("auto", "step", "backward"), default="auto", help="backward leaves the optimiser out")
    p.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    p.add_argument("--precision", choices=("auto", "float32", "bfloat16"), default="auto", help="auto: bfloat16 on a GPU")
    p.add_argument("--compile", choices=("auto", "on", "off"), default="auto", help="auto: on a GPU")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--out", type=Path, help="results as JSON")
    return p


def run(options: argparse.Namespace, ours: Side, official: Side) -> None:
    """All cases, each line printed when it is known. Raises UserError for what the user can mend."""
    about = {side.role: side.ask("describe", device=options.device) for side in (official, ours)}
    versions = {role: told["torch"] for role, told in about.items()}
    torch_of = ", ".join(f"{version} ({role})" for role, version in versions.items())
    print(f"{about['ours']['name']}, {about['ours']['threads']} threads; torch {torch_of}")
    if versions["ours"] != versions["official"] and not options.allow_different_torch:
        raise UserError("the two workers run different versions of torch; install the same, or give --allow-different-torch")
    room = about["ours"]["room"] or psutil.virtual_memory().available
    rows: list[dict[str, Any]] = []
    result = {**provenance(options.official, about["ours"], about["official"]), "cases": rows}
    with tempfile.TemporaryDirectory(prefix="compare-official-") as folder:
        for case in cases(options, about["ours"]["device"], room):
            if case.work == "backward":
                why = "--work says so" if options.work == "backward" else "two optimisers do not fit into the free memory"
                print(f"{case.arch}: forward and backward only: {why}")
            rows.append(compare(case, ours, official, Path(folder), options.steps, options.warmup))
            print("\n".join(f"  {name}: relative difference {value:.1e}" for name, value in rows[-1]["errors"].items()))
            print(table(rows[-1:]), flush=True)
            if options.out:
                options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(f"\n{table(rows)}")


def main() -> int:
    options = parser().parse_args()
    try:
        if not (options.official / NETWORK_FILES[0]).is_file():
            raise UserError(
                f"--official {options.official}: no micro_diffusion/models/dit.py there; clone SonyResearch/micro_diffusion"
            )
        sides = [Side("ours", sys.executable, options.official), Side("official", options.official_python, options.official)]
        try:
            run(options, *sides)
        finally:
            for side in sides:
                side.close()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
