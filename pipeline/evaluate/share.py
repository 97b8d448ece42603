"""One job's share of the pictures that an evaluation looks at.

Several jobs draw into one work folder, each its own batches; the evaluation then finds all of them there. A job that was
killed draws what is missing when it is run again.
"""

from pathlib import Path

from pipeline.artifacts import sha256_file, write_json
from pipeline.config.steps import EvaluateSlice, Settings
from pipeline.download.files import Files
from pipeline.evaluate.drawing import Drawing, Studio
from pipeline.evaluate.sample import Part, Sampler, work_name
from pipeline.evaluate.wanted import Wanted
from pipeline.reals import read_reals, with_captions
from pipeline.trained import Trained


def run(
    slice_: EvaluateSlice,
    settings: Settings,
    images: list[Path],
    captions: list[Path],
    weights: Path,
    part: Part,
    work: Path,
    out: Path,
) -> None:
    """Draw the pictures of `part` that are not in `work` yet, and write `out`: how many they are and what they hash to.

    `images`, `captions`, `weights` and `work` are those of the evaluation.
    Raises: UserError for too few captions, a missing model or file of prompts, or a folder that is no finished stage.
    """
    chosen = with_captions(read_reals(images, captions), slice_.evaluation.images)
    wanted = Wanted.load(slice_.evaluation, chosen, Files(work / "prompts", settings.runtime.downloads))
    trained = Trained.read(weights, slice_.evaluation.weights)
    sampler = Sampler.load(slice_, settings, trained)
    folder = work / work_name(slice_, sha256_file(trained.file), chosen)
    studio = Studio(sampler, trained, slice_.seed, settings.runtime.sample_batch, folder)
    hashes = {}
    for drawing, share in studio.shares(wanted.drawings, part):
        studio.draw(drawing, share)
        hashes[drawing.name] = _hashes(drawing, studio, share)
    count = sum(map(len, hashes.values()))
    write_json(out, {"kind": "samples", "part": part.number, "of": part.of, "count": count, "sha256": hashes})


def _hashes(drawing: Drawing, studio: Studio, share: Part) -> dict[str, str]:
    images = drawing.images(studio.folder)
    return {str(i): sha256_file(images.file(i)) for together in images.batches(studio.batch, share) for i in together}
