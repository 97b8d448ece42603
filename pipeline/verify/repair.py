"""What to set aside so that a damaged file is made again, and nothing else. Nothing is deleted."""

import os
from pathlib import Path
from typing import NamedTuple

from pipeline.verify.claims import ASIDE, KINDS, STATE, Claim

DECLARED = set(KINDS) - {"latents", "text"}  # folders whose sidecars are known to Snakemake
TOP = ("fid_coco", "guidance", "ablation")  # what is declared in the folder itself
DRAWN = "pictures and features that are set aside are made again when their step next runs"


class Remedy(NamedTuple):
    """`aside` is renamed; then Snakemake makes `targets`. `note` says what is not obvious about it."""

    aside: tuple[Path, ...]
    targets: tuple[str, ...] = ()
    note: str = ""


def remedy(folder: Path, claim: Claim) -> Remedy:
    """For a claim on a file under `folder` that does not hold."""
    if claim.kind == "checkpoint":
        return _checkpoint(folder, claim)
    declared = _declared(folder, claim.record if claim.kind != "weights" else claim.file)
    if declared is None:  # undeclared: the record alone keeps the step from making it again
        return Remedy((claim.record,), note=DRAWN if claim.kind in ("picture", "features") else "")
    return Remedy((declared,), (str(declared),))


def _checkpoint(folder: Path, claim: Claim) -> Remedy:
    """The folder of the checkpoint; and the stage, if its weights are those: they are the same file by another name."""
    checkpoint = claim.record.parent
    run = checkpoint.parent
    stage = folder / run.parent.relative_to(folder / "work")
    before = [path.name for path in sorted(run.glob("[0-9]*")) if path.name < checkpoint.name and (path / STATE).is_file()]
    start = f"its checkpoint at {int(before[-1]):,} images" if before else "its beginning, as there is no other checkpoint"
    published = stage / "summary.json"
    if not published.is_file() or f'"{run.name}"' not in published.read_text(encoding="utf-8", errors="replace"):
        return Remedy((checkpoint,), note=f"{checkpoint}: training of {stage.name} goes on from {start}")
    if any(path.name > checkpoint.name for path in run.glob("[0-9]*") if path.name.isdigit()):
        return Remedy((checkpoint,), note=f"{checkpoint}: one before the last; the finished stage does not need it")
    if claim.file == claim.record:
        return Remedy((checkpoint,), note=f"{checkpoint}: the weights of {stage} stay, and nothing vouches for them any more")
    note = f"{checkpoint}: the weights of {stage} too; that stage is trained again from {start}, to {int(checkpoint.name):,}"
    return Remedy((checkpoint, published), (str(published),), note)


def _declared(folder: Path, path: Path) -> Path | None:
    """The file that Snakemake looks for and that stands for `path`; None if `path` is not its business."""
    parts = path.relative_to(folder).parts
    if parts[0] in DECLARED or (len(parts) == 1 and path.stem in TOP):
        return path
    if parts[0] in ("train", "ablation"):
        return folder.joinpath(*parts[:2], "summary.json" if "evaluation" not in parts else "evaluation/card.json")
    if parts[0] == "eval":
        inside = "guidance" in parts[:-1]
        return path if "samples" in parts[:-1] else folder.joinpath(*parts[: 4 if inside else 2], "card.json")
    if parts[0] == "embedded":
        return folder.joinpath(*parts[:2], "captions.json" if parts[1] == "coco" else "card.json")
    return folder / "model" / "model_index.json" if parts[0] == "model" else None


def set_aside(path: Path) -> Path | None:
    """Rename, without overwriting what was set aside before. None if there is nothing to rename."""
    if not path.exists():
        return None
    to, number = path.with_name(f"{path.name}{ASIDE}"), 1
    while to.exists():
        number += 1
        to = path.with_name(f"{path.name}{ASIDE}~{number}")
    os.replace(path, to)
    return to
