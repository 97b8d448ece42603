"""The evaluation of a trained stage: samples for the captions of the evaluation set, their scores, and the card.

Everything runs in one process, which loads each library once. Samples go to the work folder as they are drawn, so the
same command goes on after an interruption.
"""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pipeline.artifacts import sha256_file, write_json
from pipeline.config.steps import EvaluateSlice, Settings
from pipeline.evaluate import card, gallery
from pipeline.evaluate.extras import Extras, Studio
from pipeline.evaluate.sample import Images, Sampler, reconstruct, work_name
from pipeline.evaluate.scores import Judge, Prepared, Sets, accuracy, two_draws
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
    """Folders of images. `untrained` is empty where no ceiling is asked for."""

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
    Raises: UserError for too few captions, a missing model or Inception file, or a folder that is no finished stage.
    """
    clock = card.Clock()
    with clock("loading"):
        reals = read_reals(images, captions)
        chosen = with_captions(reals, slice_.evaluation.images)
        tools = _load(slice_, settings, weights, images, reference)
        extras = Extras.load(slice_.evaluation, settings, tools.judge.clip, tools.sampler.device, work)
    weights_sha256 = sha256_file(tools.trained.file)
    folder = work / work_name(slice_, weights_sha256, chosen)
    made = _make(slice_, settings, tools, chosen, folder, clock)
    with clock("features"):
        scores = tools.judge.scores(_sets(slice_, tools, reals, chosen, made))
    with clock("detection"):
        metrics = scores.metrics | _accuracies(tools, chosen, made)
    studio = Studio(tools.sampler, tools.trained, tools.px, settings.runtime.sample_batch, folder)
    metrics |= extras.run(studio, made.samples, chosen, out, clock)
    with clock("gallery"):
        _show(out, tools, chosen, made, scores.clip_scores)
    record = {"metrics": metrics, "scale": scores.scale, **_facts(slice_, tools, chosen, reals, made, weights_sha256)}
    write_json(out / "card.json", {**record, "seconds": clock.seconds})


def _load(slice_: EvaluateSlice, settings: Settings, weights: Path, images: list[Path], reference: Path) -> Tools:
    trained = Trained.read(weights)
    sampler = Sampler.load(slice_, settings, trained)
    return Tools(trained, sampler, Judge.load(slice_.evaluation, settings, sampler.device, reference, images))


def _make(slice_: EvaluateSlice, settings: Settings, tools: Tools, chosen: list[Real], folder: Path, clock: card.Clock) -> Made:
    """Draw what is not in the work folder yet."""
    trained, sampler, batch = tools.trained, tools.sampler, settings.runtime.sample_batch
    texts = [real.caption for real in chosen]
    samples, reconstructions = (Images(folder / name, len(chosen)) for name in ("samples", "vae"))
    untrained = Images(folder / "untrained", min(slice_.evaluation.untrained_images, len(chosen)))
    with clock("sampling"):
        drawn = samples.complete(sampler.maker(trained.network(), texts), batch, "sampling")
    with clock("vae"):
        pixels = Prepared(chosen, tools.px)
        reconstructions.complete(lambda indices: reconstruct(sampler.vae, pixels.batch(indices)), batch, "reconstructing")
    with clock("untrained"):
        if len(untrained):
            untrained.complete(sampler.maker(trained.untrained(slice_.seed), texts), batch, "sampling untrained")
    return Made(samples, reconstructions, untrained, drawn)


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
        "warnings": card.warnings_for(network, len(chosen)),
        "config_fingerprint": digest(slice_.results()),
        "git_commit": git_commit(),
        "versions": card.versions(),
        "device": device_name(sampler.device),
        "drawn": made.drawn,
    }  # fmt: skip
