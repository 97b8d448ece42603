"""README.md of a model folder: a model card in the form that the Hugging Face hub shows.

Names of sources and licences come from outside: they are escaped and cut.
"""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from pipeline.artifacts import read_json
from pipeline.errors import UserError
from pipeline.model import MicroDiTConfig, parameter_count

SHOWN_LICENCES = 50  # the others are one line
LONGEST_NAME = 80

Facts = dict[str, Any]

CARD = """---
pipeline_tag: text-to-image
tags:
- text-to-image
- diffusion
- microdit
---
# Text to image, {px} px

A MicroDiT of {parameters:,} parameters, trained from scratch on {images:,} images seen, counted with repetition.

| | |
|---|---|
| resolution | {px}×{px} pixels |
| VAE | {vae} |
| text encoder | {text_encoder} |
| weights | {weights}, stage {stage} |
| commit of the program | {commit} |

```bash
python -m pipeline generate "a photo of a cat on a sofa" --model FOLDER
```

No licence is set for the weights: choose one that those of the training images allow.
"""
DATA = """
## Training data

Images trained on, by source and training stage. What was left out, and why, stands in the manifests.

{sources}

Licences of these images, as their sources give them:

{licences}
"""


def model_card(config: MicroDiTConfig, info: Facts, manifests: Sequence[Path]) -> str:
    """Markdown from a model folder's `info` and the manifests of all stages in the order of the schedule; with none
    nothing is said of the data.

    Raises: UserError naming the file that is no manifest.
    """
    trained = info["trained"]
    card = CARD.format(
        px=info["px"],
        parameters=parameter_count(config),
        images=trained["images"],
        vae=_cell(info["vae"]),
        text_encoder=_cell(info["text_encoder"]),
        weights=_cell(trained["weights"]),
        stage=_cell(trained["stage"]),
        commit=_cell(trained["git_commit"] or "unknown"),
    )
    stages = [_manifest(file) for file in manifests]
    return card + (DATA.format(sources=_sources(stages), licences=_licences(stages)) if stages else "")


def _manifest(file: Path) -> Facts:
    manifest = read_json(file)
    if not isinstance(manifest, dict) or manifest.get("kind") != "manifest":
        raise UserError(f"{file}: not a manifest; delete it and run again")
    if missing := [source for source, count in manifest["counts"].items() if "licences" not in count]:
        raise UserError(f"{file}: has no licences of {', '.join(missing)}; delete it and run again")
    return manifest


def _sources(stages: list[Facts]) -> str:
    roles = {shard["source"]: shard["role"] for stage in stages for shard in stage["shards"]}
    by_stage = [{source: count["trained"] for source, count in stage["counts"].items()} for stage in stages]
    rows = [[source, roles[source], *(counts.get(source, 0) for counts in by_stage)] for source in sorted(roles)]
    total = ["all", "", *(sum(counts.values()) for counts in by_stage)]
    return _table(["source", "role", *map(_heading, stages)], [*rows, total])


def _licences(stages: list[Facts]) -> str:
    by_stage = [_total(count["licences"] for count in stage["counts"].values()) for stage in stages]
    names = sorted(set().union(*by_stage), key=lambda name: (-max(counts.get(name, 0) for counts in by_stage), name))
    rows = [[name, *(counts.get(name, 0) for counts in by_stage)] for name in names[:SHOWN_LICENCES]]
    if rest := names[SHOWN_LICENCES:]:
        rows.append([f"{len(rest)} others", *(sum(counts.get(name, 0) for name in rest) for counts in by_stage)])
    return _table(["licence", *map(_heading, stages)], rows)


def _total(tables: Iterable[dict[str, int]]) -> dict[str, int]:
    total: dict[str, int] = {}
    for table in tables:
        for name, count in table.items():
            total[name] = total.get(name, 0) + count
    return total


def _heading(stage: Facts) -> str:
    return f"{stage['stage']}, {stage['px']} px"


def _table(head: list[str], rows: list[list[str | int]]) -> str:
    numbers = len(rows[0]) - sum(isinstance(cell, str) for cell in rows[0])
    lines = [head, ["---"] * (len(head) - numbers) + ["---:"] * numbers]
    lines += [[_cell(cell) if isinstance(cell, str) else f"{cell:,}" for cell in row] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(text: str) -> str:
    """Text that Markdown and HTML take as it is, on one line."""
    short = text if len(text) <= LONGEST_NAME else f"{text[: LONGEST_NAME - 1]}…"
    return re.sub(r"([\\`*_\[\]<>|&~$])", r"\\\1", " ".join(short.split()))
