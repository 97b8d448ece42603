"""The quality that the default run promises, asserted on its card: `python tests/quality_bars.py results/fid_coco.json`.

Prints every bar with what was measured and exits with 1 if one is missed.
"""

import json
import sys
from pathlib import Path

MODEL_BYTES = 10_000_000  # frozen models of the default run, together


def bars(card: dict) -> list[tuple[str, float, str, float]]:
    """(what, measured, sign, bar)."""
    one, test = card["accuracy"]["one_object"], card["detector_self_test"]["one_object"]
    attributes = ("colour", "background", "position", "shape")
    frozen = sum(f.stat().st_size for m in ("vae", "clip", "captioner") for f in (Path("pipeline/embedded") / m).rglob("*"))
    return [
        ("images", card["images"], ">=", 512),
        *[(f"accuracy of {name}", one[name], ">=", bar) for name, bar in zip(attributes, (0.90, 0.95, 0.90, 0.70), strict=True)],
        *[(f"detector on real images, {name}", test[name], ">=", 0.97) for name in attributes],
        ("fid / fid of the untrained model", card["fid"] / card["ceiling"], "<=", 0.25),
        ("feature width", card["feature_network"]["width"], "<=", 64 if card["images"] < 2000 else 10**6),
        ("processes that load torch", card["processes_with_torch"], "<=", 8),
        ("peak memory of a process, MB", max(p["peak_memory_mb"] for p in card["processes"]), "<=", 4000),
        ("frozen models, bytes", frozen, "<=", MODEL_BYTES),
    ]


def main(file: str) -> int:
    missed = 0
    for what, measured, sign, bar in bars(json.loads(Path(file).read_text())):
        good = measured >= bar if sign == ">=" else measured <= bar
        missed += not good
        print(f"{'ok  ' if good else 'MISS'}  {what}: {measured:.4g} {sign} {bar:g}")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
