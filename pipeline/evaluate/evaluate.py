"""The evaluation of a trained stage: samples for the captions of the evaluation set, their scores, and the card.

Everything runs in one process, which loads each library once. Samples go to the work folder as they are drawn, so the
same command goes on after an interruption.
"""

from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.artifacts import sha256_file, write_json
from pipeline.config.steps import EvaluateSlice, Settings
from pipeline.errors import UserError
from pipeline.evaluate import card, gallery
from pipeline.evaluate.sample import Images, Sampler, reconstruct
from pipeline.evaluate.scores import Prepared, Scorer, accuracy, distances, two_draws
from pipeline.fingerprint import digest, git_commit
from pipeline.frozen.clip import load_clip
from pipeline.frozen.models import content, identity
from pipeline.frozen.text import load_text_encoder
from pipeline.frozen.vae import load_vae
from pipeline.metrics.features import clip_tower, inception
from pipeline.metrics.fid import fid
from pipeline.reals import PREPARATION, Real, captions_sha256, ids_sha256, read_reals, with_captions
from pipeline.runtime import device_name, pick_device, pick_precision
from pipeline.trained import Trained


class Tools(NamedTuple):
    """What was loaded."""

    trained: Trained
    sampler: Sampler
    scorer: Scorer

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
    slice_: EvaluateSlice, settings: Settings, images: list[Path], captions: list[Path], weights: Path, work: Path, out: Path
) -> None:
    """Write `out`/card.json, samples.png and gallery.json for the stage in `weights`.

    `images` and `captions` are the sidecars of the evaluation source, shard by shard in the same order.
    Raises: UserError for too few captions, a missing model or Inception file, or a folder that is no finished stage.
    """
    clock = card.Clock()
    with clock("loading"):
        reals = read_reals(images, captions)
        chosen = with_captions(reals, slice_.evaluation.images)
        tools = _load(slice_, settings, weights)
    weights_sha256 = sha256_file(tools.trained.file)
    made = _make(slice_, settings, tools, chosen, work / _work_name(slice_, weights_sha256, chosen), clock)
    with clock("features"):
        metrics, scale = _scores(slice_, tools, reals, chosen, made)
    with clock("detection"):
        metrics |= _accuracies(tools, chosen, made)
    with clock("gallery"):
        _show(out, tools, chosen, made)
    record = {"metrics": metrics, "scale": scale, **_facts(slice_, tools, chosen, reals, made, weights_sha256)}
    write_json(out / "card.json", {**record, "seconds": clock.seconds})


def _load(slice_: EvaluateSlice, settings: Settings, weights: Path) -> Tools:
    evaluation, models = slice_.evaluation, slice_.models
    device = pick_device(settings.runtime.device)
    trained, clips = Trained.read(weights), cache(lambda ref: load_clip(ref, device))
    _check(trained, slice_)
    name = evaluation.features
    network = inception(device) if name == "inception" else clip_tower(name, clips(name))
    sampler = Sampler(
        vae=load_vae(models.vae, device),
        text_encoder=load_text_encoder(models.text_encoder, models.text_tokens, device, trained.config.drop_text_padding),
        edm=trained.edm,
        steps=evaluation.steps,
        guidance=evaluation.guidance,
        seed=evaluation.seed,
        device=device,
        precision=pick_precision(settings.runtime.precision, device),
    )
    clip, batch = clips(evaluation.clip_score), settings.runtime.encode_batch
    judge = clip_tower(evaluation.clip_score, clip)
    return Tools(trained, sampler, Scorer(network, clip, judge, evaluation.resize, device, batch))


def _check(trained: Trained, slice_: EvaluateSlice) -> None:
    for name, ref in trained.frozen.items():
        if ref != (configured := getattr(slice_.models, name)):
            raise UserError(f"models.{name}: {configured}, but {trained.file.parent} was trained with {ref}; give that one")


def _work_name(slice_: EvaluateSlice, weights_sha256: str, chosen: list[Real]) -> str:
    """Samples are kept for as long as nothing changes that they depend on; scores may."""
    evaluation, models = slice_.evaluation, slice_.models
    return digest(
        {
            "weights": weights_sha256,
            "captions": captions_sha256(chosen),
            "sampler": [evaluation.steps, evaluation.guidance, evaluation.seed],
            "untrained": slice_.seed,
            "models": [content(identity(models.vae)), content(identity(models.text_encoder)), models.text_tokens],
        }
    )


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


def _scores(
    slice_: EvaluateSlice, tools: Tools, reals: list[Real], chosen: list[Real], made: Made
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Distances and CLIP scores, and the distances that give them a scale."""
    scorer, seed, prepared = tools.scorer, slice_.evaluation.seed, Prepared(chosen, tools.px)
    reference = scorer.features(prepared, "real images")
    metrics: dict[str, Any] = distances(scorer.features(made.samples, "samples"), reference, seed)
    texts = scorer.texts([real.caption for real in chosen])
    metrics["clip_score"] = scorer.clip_score(made.samples, texts, "samples")
    metrics["clip_score_real"] = scorer.clip_score(prepared, texts, "real images")
    scale = {"floor": _floor(slice_, tools, reals, chosen, reference)}
    for name, images in (("vae", made.reconstructions), ("ceiling", made.untrained)):
        scale[name] = {"fid": fid(scorer.features(images, name), reference), "images": len(images)} if len(images) else None
    return metrics, scale


def _floor(slice_: EvaluateSlice, tools: Tools, reals: list[Real], chosen: list[Real], reference: Any) -> dict[str, Any]:
    """The FID between two draws of real images: what a perfect model would get."""
    draws = two_draws(len(reals), len(chosen), slice_.evaluation.seed)
    known = {real.key: row for real, row in zip(chosen, reference, strict=True)}
    others = [reals[i] for i in draws.flat if reals[i].key not in known]
    rows = tools.scorer.features(Prepared(others, tools.px), "further real images") if others else []
    known |= {real.key: row for real, row in zip(others, rows, strict=True)}
    a, b = ([known[reals[i].key] for i in draw] for draw in draws)
    return {"fid": fid(a, b), "images": len(a)}


def _accuracies(tools: Tools, chosen: list[Real], made: Made) -> dict[str, Any]:
    return {
        "accuracy": accuracy(made.samples, chosen),
        "detector_self_test": accuracy(Prepared(chosen, tools.px), chosen),
        "accuracy_vae": accuracy(made.reconstructions, chosen),
    }


def _show(out: Path, tools: Tools, chosen: list[Real], made: Made) -> None:
    shown = chosen[: gallery.GALLERY_PAIRS]
    pairs = [(made.samples[i], real.pixels(tools.px)) for i, real in enumerate(shown)]
    names = [{"index": i, "key": real.key, "caption": real.caption} for i, real in enumerate(shown)]
    gallery.write_gallery(out / "gallery.json", names, pairs)
    gallery.write_grid(out / "samples.png", [real.caption for real in shown], pairs)


def _facts(
    slice_: EvaluateSlice, tools: Tools, chosen: list[Real], reals: list[Real], made: Made, weights_sha256: str
) -> dict[str, Any]:
    """What made the scores."""
    evaluation, network, sampler, trained = slice_.evaluation, tools.scorer.network, tools.sampler, tools.trained
    ids = ids_sha256(chosen)
    reasons = card.why_not_comparable(evaluation.features, len(chosen), ids)
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
        "resize": evaluation.resize,
        "image_format": "png",
        "reference_preparation": PREPARATION,
        "sampler": {
            "name": "heun", "steps": sampler.steps, "guidance": sampler.guidance, "seed": sampler.seed,
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
