"""The evaluation of a trained stage: samples for the captions of the evaluation set, their scores, and the card.

Everything runs in one process, which loads each library once. Samples go to the work folder as they are drawn, so the
same command goes on after an interruption.
"""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pipeline.artifacts import sha256_file, write_json
from pipeline.config.steps import EvaluateSlice, Settings
from pipeline.download.files import Files
from pipeline.evaluate import card, gallery
from pipeline.evaluate.drawing import Studio
from pipeline.evaluate.extras import Extras, Pictures
from pipeline.evaluate.sample import Images, Sampler, reconstruct, work_name
from pipeline.evaluate.scores import Judge, Prepared, Sets, accuracy, two_draws
from pipeline.evaluate.wanted import Wanted
from pipeline.fingerprint import digest, git_commit
from pipeline.frozen.models import identity
from pipeline.reals import PREPARATION, Real, captions_sha256, ids_sha256, read_reals, with_captions
from pipeline.runtime import device_name
from pipeline.trained import Trained


class Tools(NamedTuple):
    """What was loaded."""

    trained: Trained
    sampler: Sampler
    judge: Judge

    @property
    def px(self) -> int:
        """Side of the sampled images."""
        return self.trained.config.input_size * self.sampler.vae.factor


class Made(NamedTuple):
    """Folders of images for the captions. `untrained` is empty where no ceiling is asked for."""

    samples: Images
    reconstructions: Images
    untrained: Images
    drawn: int  # samples drawn by this process; the others were there


def run(
    slice_: EvaluateSlice,
    settings: Settings,
    images: list[Path],
    captions: list[Path],
    weights: Path,
    work: Path,
    out: Path,
    reference: Path,
) -> None:
    """Write `out`/card.json, samples.png, gallery.json and failures.json for the stage in `weights`.

    `images` and `captions` are the sidecars of the evaluation source, shard by shard in the same order. Features of the
    real images are kept in the folder `reference`, which all evaluations share.
    Raises: UserError for too few captions, a missing model, file of prompts or Inception file, or a folder that is no
    finished stage.
    """
    clock = card.Clock()
    with clock("loading"):
        reals = read_reals(images, captions)
        chosen = with_captions(reals, slice_.evaluation.images)
        wanted = Wanted.load(slice_.evaluation, chosen, Files(work / "prompts", settings.runtime.downloads))
        tools = _load(slice_, settings, weights, images, reference)
        extras = Extras.load(slice_.evaluation, wanted, tools.judge.clip, tools.sampler.device)
    weights_sha256 = sha256_file(tools.trained.file)
    folder, batch = work / work_name(slice_, weights_sha256, chosen), settings.runtime.sample_batch
    made = _make(wanted, Studio(tools.sampler, tools.trained, slice_.seed, batch, folder), Prepared(chosen, tools.px), clock)
    with clock("features"):
        scores = tools.judge.scores(_sets(slice_, tools, reals, chosen, made))
    with clock("detection"):
        metrics = scores.metrics | _accuracies(tools, chosen, made)
    metrics |= extras.run(Pictures(folder, wanted.captions, tools.px), chosen, batch, out, clock)
    with clock("gallery"):
        _show(out, tools, chosen, made, scores.clip_scores)
    record = {"metrics": metrics, "scale": scores.scale, **_facts(slice_, tools, chosen, reals, made, weights_sha256)}
    write_json(out / "card.json", {**record, "seconds": clock.seconds})


def _load(slice_: EvaluateSlice, settings: Settings, weights: Path, images: list[Path], reference: Path) -> Tools:
    trained = Trained.read(weights, slice_.evaluation.weights)
    sampler = Sampler.load(slice_, settings, trained)
    return Tools(trained, sampler, Judge.load(slice_.evaluation, settings, sampler.device, reference, images))


def _make(wanted: Wanted, studio: Studio, reals: Prepared, clock: card.Clock) -> Made:
    """Draw what is not in the work folder yet."""
    drawn = {}
    for drawing in wanted.drawings:
        with clock(drawing.step):
            drawn[drawing.name] = studio.draw(drawing)
    vae, reconstructions = studio.sampler.vae, Images(studio.folder / "vae", len(reals))
    with clock("vae"):
        reconstructions.complete(lambda indices: reconstruct(vae, reals.batch(indices)), studio.batch, "reconstructing")
    samples, untrained = (drawing.images(studio.folder) for drawing in (wanted.captions, wanted.untrained))
    return Made(samples, reconstructions, untrained, drawn[wanted.captions.name])


def _sets(slice_: EvaluateSlice, tools: Tools, reals: list[Real], chosen: list[Real], made: Made) -> Sets:
    draws = two_draws(len(reals), len(chosen), slice_.evaluation.seed)
    scale = {"vae": made.reconstructions, "ceiling": made.untrained}
    return Sets(made.samples, Prepared(chosen, tools.px), scale, [[reals[i] for i in draw] for draw in draws])


def _accuracies(tools: Tools, chosen: list[Real], made: Made) -> dict[str, Any]:
    return {
        "accuracy": accuracy(made.samples, chosen),
        "detector_self_test": accuracy(Prepared(chosen, tools.px), chosen),
        "accuracy_vae": accuracy(made.reconstructions, chosen),
    }


def _show(out: Path, tools: Tools, chosen: list[Real], made: Made, clip_scores: np.ndarray) -> None:
    def pairs(indices: list[int]) -> list[gallery.Pair]:
        return [(made.samples[i], chosen[i].pixels(tools.px)) for i in indices]

    def told(i: int) -> dict[str, Any]:
        real = chosen[i]
        return {"index": i, "key": real.key, "caption": real.caption, "clip_score": round(float(clip_scores[i]), 3)}

    worst = [int(i) for i in np.argsort(clip_scores, kind="stable")[: gallery.FAILURES]]
    first = list(range(min(gallery.GALLERY_PAIRS, len(chosen))))
    gallery.write_gallery(out / "failures.json", [told(i) for i in worst], pairs(worst))
    gallery.write_gallery(out / "gallery.json", [told(i) for i in first], pairs(first))
    gallery.write_grid(out / "samples.png", [chosen[i].caption for i in first], pairs(first))


def _facts(
    slice_: EvaluateSlice, tools: Tools, chosen: list[Real], reals: list[Real], made: Made, weights_sha256: str
) -> dict[str, Any]:
    """What made the scores."""
    evaluation, network, sampler, trained = slice_.evaluation, tools.judge.views[0].network, tools.sampler, tools.trained
    ids = ids_sha256(chosen)
    reasons = card.why_not_comparable(evaluation, len(chosen), ids, tools.px)
    return {
        "images": len(chosen),
        "real_images": len(reals),
        "px": tools.px,
        "ids_sha256": ids,
        "captions_sha256": captions_sha256(chosen),
        "feature_network": {
            "name": network.name, "identity": network.identity, "width": network.width, "input_px": network.px,
        },
        "clip_score_model": identity(evaluation.clip_score),
        "clip_score_tokens": tools.judge.clip.tokens,
        **{f"{name}_model": ref and identity(ref) for name, ref in card.other_models(evaluation).items()},
        "resize": evaluation.resize,
        "image_format": "png",
        "reference_preparation": PREPARATION,
        "sampler": {
            "name": sampler.method, "steps": sampler.steps, "guidance": sampler.guidance, "interval": sampler.interval,
            "seed": sampler.seed,
            **{name: getattr(sampler.edm, name) for name in ("sigma_data", "sigma_min", "sigma_max", "rho")},
            "precision": str(sampler.precision).removeprefix("torch."),
        },
        "weights": {
            "file": trained.file.name, "sha256": weights_sha256, "ema": True,
            "images_seen_total": trained.images_seen_total, "fingerprint": trained.fingerprint,
        },
        "models": {"vae": identity(slice_.models.vae), "text_encoder": identity(slice_.models.text_encoder)},
        "comparable_to_published": not reasons,
        "why_not": reasons,
        "warnings": card.warnings_for(network, len(chosen), evaluation.weights),
        "config_fingerprint": digest(slice_.results()),
        "git_commit": git_commit(),
        "versions": card.versions(),
        "device": device_name(sampler.device),
        "drawn": made.drawn,
    }  # fmt: skip
