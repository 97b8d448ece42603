"""One job's share of the samples that an evaluation scores.

Several jobs draw into one work folder, each its own batches; the evaluation then finds all of them there. A job that was
killed draws what is missing when it is run again.
"""

from pathlib import Path
from typing import Any

from pipeline.artifacts import sha256_file, write_json
from pipeline.config.steps import EvaluateSlice, Settings
from pipeline.evaluate.sample import Images, Part, Sampler, work_name
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
    """Draw the samples of `part` that are not in `work` yet, and write `out`: how many they are and what they hash to.

    `images`, `captions`, `weights` and `work` are those of the evaluation.
    Raises: UserError for too few captions, a missing model, or a folder that is no finished stage.
    """
    chosen, batch = with_captions(read_reals(images, captions), slice_.evaluation.images), settings.runtime.sample_batch
    trained = Trained.read(weights)
    sampler = Sampler.load(slice_, settings, trained)
    folder = work / work_name(slice_, sha256_file(trained.file), chosen)
    samples = Images(folder / "samples", len(chosen))
    draw = sampler.maker(trained.network(), [real.caption for real in chosen])
    samples.complete(draw, batch, f"sampling, part {part.number} of {part.of}", part)
    write_json(out, _record(samples, batch, part))


def _record(samples: Images, batch: int, part: Part) -> dict[str, Any]:
    indices = [index for together in samples.batches(batch, part) for index in together]
    return {
        "kind": "samples",
        "part": part.number,
        "of": part.of,
        "count": len(indices),
        "sha256": {str(i): sha256_file(samples.file(i)) for i in indices},
    }
