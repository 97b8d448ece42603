"""`python -m pipeline bench NAME …`, apart from the other commands because it must run where torch alone is installed."""

import importlib
import sys
from collections.abc import Sequence

BENCHES = {
    "train-step": ("pipeline.bench.train_step", "speed of the training step, and what the whole recipe would cost"),
    "sample": ("pipeline.bench.sample", "images a second that a network draws, by sampler and number of steps"),
    "loader": ("pipeline.bench.loader", "samples a second that the data loader delivers"),
    "encode": ("pipeline.bench.encode", "images a second of decoding, encoding and writing, alone and together"),
}


def main(arguments: Sequence[str]) -> int:
    """Run one benchmark; it prints JSON. Returns the exit code."""
    if not arguments or arguments[0] not in BENCHES:
        for name, (_, what) in BENCHES.items():
            print(f"python -m pipeline bench {name:<12} {what}", file=sys.stderr)
        return 0 if arguments and arguments[0] in ("-h", "--help") else 2
    module = importlib.import_module(BENCHES[arguments[0]][0])
    return module.main(arguments[1:])
