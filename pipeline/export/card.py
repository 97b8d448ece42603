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

HEAD = """---
library_name: diffusers
pipeline_tag: text-to-image
tags:
- text-to-image
- diffusion
- microdit
---
# Text to image, {px} px

{what}

| | |
|---|---|
| resolution | {px}×{px} pixels |
| VAE | {vae} |
| text encoder | {text_encoder} |
| weights | {weights} |
| commit of the program | {commit} |

```python
from diffusers import DiffusionPipeline

pipe = DiffusionPipeline.from_pretrained("FOLDER", custom_pipeline="FOLDER", trust_remote_code=True)
pipe("a photo of a cat on a sofa", seed=0).images[0].save("cat.png")
```

The folder carries the code that this runs: `pipeline.py` and `transformer/modeling_microdit.py`.

No licence is set for the weights: choose one that those of the training images allow. The code is under Apache-2.0.
"""
SCORES = """
## How good it is

{images} pictures drawn for captions of the evaluation set, with {sampler}.

{scores}

{comparable}
"""
COST = """
## What it cost

{hours} device-hours of training on {device}{dollars}.

{stages}
"""
DATA = """
## Training data

Images trained on, by source and training stage. What was left out, and why, stands in the manifests.

{sources}

Licences of these images, as their sources give them:

{licences}
"""
LIMITS = """
## Limits

- It draws what its training images show, at {px} pixels, and takes on their biases. Nothing filters what it draws.
- It reads the first {tokens} tokens of a prompt, special ones included; the rest is cut off.
- Text in pictures, numbers of things and their places are what models of this kind get wrong most.
"""
METRICS = {
    "fid": "FID, lower is better",
    "floor": "FID of real images, which a perfect model would have",
    "kid": "KID, lower is better",
    "clip_fid": "CLIP-FID, lower is better",
    "cmmd": "CMMD, lower is better",
    "fd_dino": "FD on DINOv2, lower is better",
    "precision": "precision",
    "recall": "recall",
    "density": "density",
    "coverage": "coverage",
    "clip_score": "CLIP score, higher is better",
    "clip_score_real": "CLIP score of the real images",
}


def model_card(config: MicroDiTConfig, info: Facts, manifests: Sequence[Path], scores: Facts | None = None) -> str:
    """Markdown from a model folder's `info`, the manifests of all stages in the order of the schedule, and the evaluation
    card of the run; what is not given is not spoken of.

    Raises: UserError naming the file that is no manifest.
    """
    trained, stages = info["trained"], [_manifest(file) for file in manifests]
    what = f"trained from scratch on {trained['images']:,} images seen, counted with repetition"
    head = _head(config, info, what, f"{trained['weights']}, stage {trained['stage']}", trained["git_commit"] or "unknown")
    parts = [head]
    if scores:
        parts += [_scores(scores), _cost(scores)]
    if stages:
        parts.append(DATA.format(sources=_sources(stages), licences=_licences(stages)))
    return "".join([*parts, _limits(config, info)])


def imported_card(config: MicroDiTConfig, info: Facts) -> str:
    """Markdown for an imported checkpoint, whose training is not known here."""
    file = info["trained"]["imported"]
    return _head(config, info, f"imported from the checkpoint {_cell(file)}", file, "unknown") + _limits(config, info)


def _head(config: MicroDiTConfig, info: Facts, what: str, weights: str, commit: str) -> str:
    return HEAD.format(
        px=info["px"],
        what=f"A MicroDiT (arXiv 2407.15811) of {parameter_count(config):,} parameters, {what}.",
        vae=_cell(info["frozen"]["vae"] or "not named"),
        text_encoder=_cell(info["frozen"]["text_encoder"] or "not named"),
        weights=_cell(weights),
        commit=_cell(commit),
    )


def _limits(config: MicroDiTConfig, info: Facts) -> str:
    return LIMITS.format(px=info["px"], tokens=config.caption_length)


def read_evaluation(file: Path, weights_sha256: str) -> Facts:
    """The evaluation card of a run. Raises: UserError if it is none, or of other weights than those with this hash."""
    card = read_json(file)
    if not isinstance(card, dict) or {"fid", "images", "sampler", "weights", "stages", "cost"} - card.keys():
        raise UserError(f"{file}: not the evaluation card of a run; delete it and run again")
    if card["weights"]["sha256"] != weights_sha256:
        raise UserError(f"{file}: scores other weights than these; evaluate these, or leave --evaluation out")
    return card


def _scores(card: Facts) -> str:
    rows = [[name, f"{card[key]:.4g}"] for key, name in METRICS.items() if isinstance(card.get(key), int | float)]
    for group, found in (card.get("accuracy") or {}).items():
        rows.append([f"right in all that the caption says, {group.replace('_', ' ')}", f"{found['all']:.1%}"])
    reasons = "; ".join(map(_cell, card["why_not"]))
    told = f"Not comparable with published FID: {reasons}." if reasons else "Comparable with published zero-shot FID-30K."
    return SCORES.format(
        images=f"{card['images']:,}",
        sampler=f"{card['sampler']['steps']} steps of {card['sampler']['name']} and guidance {card['sampler']['guidance']}",
        scores=_table(["metric", ""], rows),
        comparable=told,
    )


def _cost(card: Facts) -> str:
    stages, cost = card["stages"], card["cost"]
    rows = [[_heading({"stage": s["name"], **s}), s["images"], f"{s['device_hours']:.4g}"] for s in stages]
    price = f", ${cost['dollars']:,.4g} at ${cost['dollars_per_hour']:,.4g} an hour" if cost["dollars_per_hour"] else ""
    return COST.format(
        hours=f"{cost['device_hours']:.4g}",
        device=_cell(stages[-1]["device"]),
        dollars=price,
        stages=_table(["stage", "images", "device-hours"], rows),
    )


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
    """The columns behind the first that holds a number are set to the right."""
    numbers = len(rows[0]) - sum(isinstance(cell, str) for cell in rows[0])
    lines = [head, ["---"] * (len(head) - numbers) + ["---:"] * numbers]
    lines += [[_cell(cell) if isinstance(cell, str) else f"{cell:,}" for cell in row] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(text: str) -> str:
    """Text that Markdown and HTML take as it is, on one line."""
    short = text if len(text) <= LONGEST_NAME else f"{text[: LONGEST_NAME - 1]}…"
    return re.sub(r"([\\`*_\[\]<>|&~$])", r"\\\1", " ".join(short.split()))
