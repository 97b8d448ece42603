"""Scores while a stage trains: what they are, that they change nothing, and that no interruption shows in them."""

import io
import json
import os
import signal
import sys
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from pipeline.artifacts import CAPTIONS, read_json, write_sidecar
from pipeline.config.steps import Settings
from pipeline.dataset import Manifest
from pipeline.diffusion import EDM
from pipeline.engine.objective import Objective
from pipeline.errors import UserError
from pipeline.model import MicroDiT
from pipeline.train.best import Best
from pipeline.train.learner import recipe_of
from pipeline.train.network import architecture, check_frozen
from pipeline.train.scores import EvaluationSet, Scores
from pipeline.trained import Trained
from tests.jobs import Patched
from tests.training import LENGTH, TIMES, WIDTH, Trainer, encoded_by, ends, json_lines, same, weights, write_manifest
from tests.unit.frozen.small_models import save_clip

CPU = torch.device("cpu")
PRICE, IMAGES = 3600.0, 10
COLOURS = {"red": (220, 40, 40), "green": (40, 200, 40), "blue": (40, 40, 220), "grey": (128, 128, 128)}


@pytest.fixture(scope="session")
def clip(server, tmp_path_factory):
    """A CLIP whose text tower makes what the toy network takes."""
    folder = tmp_path_factory.mktemp("clip")
    maker = server.Process(target=save_clip, args=(folder,), kwargs={"width": WIDTH})
    maker.start()
    maker.join()
    return folder


def write_shard(folder, number, names):
    """Plain pictures of 16 px with their colour as caption. Returns the sidecars of images and of captions."""
    tar, table = folder / f"{number:05d}.tar", folder / "captions" / f"{number:05d}.parquet"
    table.parent.mkdir(exist_ok=True)
    keys = [f"{number * 100 + place:06d}" for place in range(len(names))]
    with tarfile.open(tar, "w") as archive:
        for place, (key, name) in enumerate(zip(keys, names, strict=True)):
            noise = np.random.default_rng([number, place]).integers(-30, 30, (16, 16, 3))
            pixels, buffer = np.clip(np.array(COLOURS[name]) + noise, 0, 255).astype(np.uint8), io.BytesIO()
            Image.fromarray(pixels).save(buffer, "png")
            for suffix, content in (("png", buffer.getvalue()), ("json", json.dumps({"key": key}).encode())):
                member = tarfile.TarInfo(f"{key}.{suffix}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    rows = [
        {"key": key, "caption": name, "captioner": None, "prompt": None, "reason": None}
        for key, name in zip(keys, names, strict=True)
    ]
    pq.write_table(pa.Table.from_pylist(rows, CAPTIONS), table)
    images, captions = tar.with_suffix(".json"), table.with_suffix(".json")
    write_sidecar(images, "images", {"images": (tar, len(rows))}, {})
    write_sidecar(captions, "captions", {"captions": (table, len(rows))}, {})
    return images, captions


@pytest.fixture(scope="session")
def shards(tmp_path_factory):
    """Two shards of eight and four pictures."""
    folder, names = tmp_path_factory.mktemp("evaluated"), list(COLOURS)
    return EvaluationSet(*zip(write_shard(folder, 0, names * 2), write_shard(folder, 1, names), strict=True))


@pytest.fixture(scope="session")
def scored(clip, vae, tmp_path_factory):
    """The toy's manifest, its text said to be of that CLIP."""
    manifest = write_manifest(tmp_path_factory.mktemp("scored") / "low", 8, 4)
    encoded_by(manifest, text_encoder=clip, vae=vae)
    return manifest


@pytest.fixture(scope="session")
def sections(clip):
    """`sections(every_images=…)`: settings with a curve and a price."""

    def make(**curve):
        curve = {"images": IMAGES, "every_images": 240, "steps": 3} | curve
        evaluation = {"source": "coco", "features": str(clip), "clip_score": str(clip), "guidance": 2.0, "seed": 4}
        return {"evaluation": {**evaluation, "curve": curve}, "report": {"dollars_per_hour": PRICE}}

    return make


@pytest.fixture(scope="session")
def stage_of(slice_of, clip):
    """`stage_of(images=…)`: a stage that conditions on that CLIP."""
    return lambda slice_=None, **stage: slice_of(
        {"text_encoder": str(clip), "text_tokens": LENGTH, **(slice_ or {})}, **({"mask_ratio": 0.5, "images": 720} | stage)
    )


@pytest.fixture(scope="session")
def sidecars(shards):
    """Arguments of the command line."""
    return [f"--evaluation-{kind}={path}" for kind, paths in shards._asdict().items() for path in paths]


@pytest.fixture(scope="session")
def finished(server, vae, stage_of, scored, sections, sidecars, tmp_path_factory):
    """The trainer of a scored run that nobody stopped. All its checkpoints are kept."""
    trainer = Trainer(server, vae, tmp_path_factory.mktemp("finished"))
    trainer.run(stage_of(), scored, sections=sections(), more=sidecars, checkpoint_every_images=240, keep_checkpoints=9)
    return trainer


@pytest.fixture
def reference(finished):
    """Its outputs."""
    return finished.folder / "run/out"


def curve(out, keep=("images", "curve_fid", "curve_clip_score", "curve_images", "curve_id")):
    """Lines of scores, without what a clock says."""
    return [{key: line[key] for key in keep} for line in json_lines(out / "metrics.jsonl") if "curve_fid" in line]


def without_curve(out):
    lines = [line for line in json_lines(out / "metrics.jsonl") if "curve_fid" not in line]
    return [{key: value for key, value in line.items() if key not in TIMES} for line in lines]


def test_a_curve_against_images_hours_and_dollars(reference):
    lines, summary = (
        [line for line in json_lines(reference / "metrics.jsonl") if "curve_fid" in line],
        read_json(reference / "summary.json"),
    )
    assert [line["images"] for line in lines] == [240, 480, 720]
    assert all(
        line["curve_images"] == IMAGES and line["curve_fid"] > 0 and 0 <= line["curve_clip_score"] <= 100 for line in lines
    )
    assert len({line["curve_fid"] for line in lines}) == 3 and len({line["curve_id"] for line in lines}) == 1
    spent = [line["dollars"] for line in lines]
    assert 0 < spent[0] < spent[1] < spent[2] <= summary["dollars"]
    assert lines[-1]["device_hours"] * PRICE == pytest.approx(spent[-1], rel=1e-3)
    assert summary["seconds"]["scores"] > 0 and lines[0]["dollars"] > summary["seconds"]["scores"] / 10


def test_the_weights_are_those_of_a_run_without_scores(trainer, reference, stage_of, scored, sidecars, sections):
    """And nothing that judges images is even imported, although the evaluation set is given."""
    blind = Trainer(Patched(trainer._server, forbid_judges), trainer._vae, trainer.folder)
    out = blind.run(stage_of(), scored, sections=sections(images=0), more=sidecars, checkpoint_every_images=240)
    assert same(weights(out), weights(reference)) and without_curve(out) == without_curve(reference) and not curve(out)
    assert read_json(out / "summary.json")["fingerprint"] == read_json(reference / "summary.json")["fingerprint"]
    assert not (out / "best.safetensors").exists() and read_json(out / "summary.json")["best_by_fid"] is None


def forbid_judges():
    for name in ("pipeline.reals", "pipeline.metrics", "pipeline.frozen.clip", "cleanfid"):
        sys.modules[name] = None


def test_the_best_point_is_kept_and_named(finished, reference):
    lines, summary = curve(reference), read_json(reference / "summary.json")
    best = min(lines, key=lambda line: line["curve_fid"])
    assert summary["best_by_fid"] == {key: value for key, value in best.items() if key != "curve_id"}
    at_best = finished.work() / f"{best['images']:012d}/ema.safetensors"
    assert same(load_file(reference / "best.safetensors"), load_file(at_best))
    assert [file.name for file in (finished.work() / "best").iterdir() if int(file.stem) == best["images"]]
    trained = Trained.read(reference, "best")
    assert trained.images_seen_total == best["images"] and trained.file.name == "best.safetensors"


def test_the_scores_are_those_of_the_evaluation_with_fewer_steps(reference, clip, vae, shards, sections):
    from pipeline.evaluate.sample import Sampler
    from pipeline.frozen.clip import load_clip
    from pipeline.frozen.text import load_text_encoder
    from pipeline.frozen.vae import load_vae
    from pipeline.metrics.clip_score import clip_score
    from pipeline.metrics.features import clip_tower, features
    from pipeline.metrics.fid import fid
    from pipeline.reals import read_reals

    trained, judge = Trained.read(reference), load_clip(str(clip), CPU)
    encoder = load_text_encoder(str(clip), LENGTH, CPU)
    reals = read_reals(*map(list, shards))[:IMAGES]
    sampler = Sampler(load_vae(str(vae), CPU), encoder, trained.edm, 3, 2.0, 4, CPU, torch.float32)
    drawn = sampler.maker(trained.network(), [real.caption for real in reals])(list(range(IMAGES)))
    tower = clip_tower(str(clip), judge)
    made, real = (features(tower, images, "clean", CPU) for images in (drawn, [real.pixels(8) for real in reals]))
    texts = judge.text_features([real.caption for real in reals]).numpy()
    assert curve(reference)[-1]["curve_fid"] == pytest.approx(fid(made, real), rel=1e-3)
    assert curve(reference)[-1]["curve_clip_score"] == pytest.approx(clip_score(made, texts), rel=1e-4)


def die_at_the_second_scoring():
    done = []

    def drawn(self, model, text, original=Scores._drawn):
        done.append(model)
        for images in original(self, model, text):
            yield images
            if len(done) == 2:
                os.kill(os.getpid(), signal.SIGKILL)

    Scores._drawn = drawn


@pytest.mark.parametrize("every", [240, 192])
def test_a_run_that_is_killed_while_it_scores_ends_with_the_same_lines(
    trainer, reference, stage_of, scored, sections, sidecars, every
):
    """Where a checkpoint was just written, and where the last one is some steps ago."""
    how = {"sections": sections(), "more": sidecars, "checkpoint_every_images": every, "sample_batch": 64}
    dying = Trainer(Patched(trainer._server, die_at_the_second_scoring), trainer._vae, trainer.folder)
    dying.run(stage_of(), scored, expect=-signal.SIGKILL, **how)
    assert trainer.newest() == (480 if every == 240 else 384)
    out = trainer.run(stage_of(), scored, **how)
    assert curve(out) == curve(reference) and same(weights(out), weights(reference))
    assert same(load_file(out / "best.safetensors"), load_file(reference / "best.safetensors"))
    assert read_json(out / "summary.json")["best_by_fid"] == read_json(reference / "summary.json")["best_by_fid"]


def test_a_run_that_is_stopped_where_it_should_score_scores_when_it_goes_on(trainer, stage_of, scored, sections, sidecars):
    how = {"sections": sections(every_images=24), "more": sidecars}
    for images in (24, 48):
        trainer.run(stage_of(images=72), scored, deadline=0, expect=1, **how)
        assert f"stopped by deadline at {images} images" in trainer.log().read_text()
    out = trainer.run(stage_of(images=72), scored, deadline=0, **how)
    assert [line["images"] for line in curve(out)] == [24, 48, 72]
    assert curve(out) == curve(trainer.run(stage_of(images=72), scored, name="whole", **how))


def test_scores_that_are_asked_for_later_train_nothing(trainer, stage_of, scored, sections, sidecars):
    stage, off = stage_of(images=96), sections(images=0)
    before = weights(trainer.run(stage, scored, sections=off, more=sidecars))
    told, first = trainer.log().read_text(), curve(trainer.run(stage, scored, sections=sections(), more=sidecars))
    assert [line["images"] for line in first] == [96]
    out = trainer.run(stage, scored, sections=sections(), more=sidecars)
    assert curve(out) == first and same(weights(out), before)  # not twice
    out = trainer.run(stage, scored, sections=off)
    assert (out / "best.safetensors").exists() and read_json(out / "summary.json")["best_by_fid"]["images"] == 96
    other = curve(trainer.run(stage, scored, sections=sections(steps=4), more=sidecars))
    assert other[:1] == first and other[1]["curve_id"] != first[0]["curve_id"]  # another curve, and not compared with this one
    assert read_json(out / "summary.json")["best_by_fid"]["curve_fid"] == other[1]["curve_fid"]
    assert "loss" not in trainer.log().read_text().removeprefix(told) and len(list((trainer.folder / "run/work").iterdir())) == 1


def test_a_new_configuration_leaves_no_best_of_another(trainer, stage_of, scored, sections, sidecars):
    trainer.run(stage_of(images=48), scored, sections=sections(), more=sidecars)
    out = trainer.run(stage_of(images=72), scored)
    assert not (out / "best.safetensors").exists()
    with pytest.raises(UserError, match="was trained without scores"):
        Trained.read(out, "best")


def test_one_of_several_processes_scores(trainer, reference, stage_of, scored, sections, sidecars):
    how = {"sections": sections(), "more": sidecars, "checkpoint_every_images": 240}
    for parallel in ("ddp", "fsdp", "fsdp"):  # the last one finds everything done
        assert ends(trainer.start_two(stage_of(images=240), scored, name=parallel, parallel=parallel, **how)) == [0, 0]
    for out in (trainer.folder / "ddp/out", trainer.folder / "fsdp/out"):
        (line,) = curve(out)
        assert line["images"] == 240 and line["curve_fid"] == pytest.approx(curve(reference)[0]["curve_fid"], rel=0.05)
        assert same(*(load_file(out / f"{name}.safetensors") for name in ("ema", "best")))


@pytest.fixture
def scores_of(stage_of, scored, shards, sections, vae):
    """`scores_of(curve, slice_)`: the object, and a network with random weights that it may measure."""
    from pipeline.frozen.vae import load_vae

    manifest, loaded = Manifest.read(scored), load_vae(str(vae), CPU)

    def make(slice_=None, chosen=shards, evaluation=None, **curve):
        settings = sections(**curve)
        settings["evaluation"] |= evaluation or {}
        slice_ = stage_of({"vae": str(vae), **(slice_ or {})})
        objective = Objective(EDM(sigma_data=0.7), architecture(slice_, manifest), recipe_of(slice_))
        return Scores(slice_, Settings(**settings), chosen, manifest, objective, CPU, lambda: loaded)

    return make


@pytest.fixture
def network(stage_of, scored):
    """Its last layer is not zero, as it is in a new one."""
    model = MicroDiT(architecture(stage_of(), Manifest.read(scored)), seed=5)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model.requires_grad_(False).eval()


def test_every_stage_is_asked_the_same(scores_of, network):
    one, other = scores_of(), scores_of({"name": "later", "seed": 9})
    found = one.measure(network)
    torch.rand(7)  # the global generator is not asked
    assert found == one.measure(network) == other.measure(network)
    assert scores_of(steps=4).id != found["curve_id"] != scores_of(images=9).id
    assert scores_of(evaluation={"sampler": {"name": "euler"}}).measure(network)["curve_fid"] != found["curve_fid"]


def test_more_images_than_the_set_has_are_all_of_it(scores_of, network):
    assert scores_of(images=500).measure(network)["curve_images"] == 12


def test_the_batch_changes_nothing_but_the_last_digits(scores_of, network):
    scores = scores_of()
    found, scores._runtime = scores.measure(network), Settings(runtime={"sample_batch": 3, "encode_batch": 4}).runtime
    assert scores.measure(network)["curve_fid"] == pytest.approx(found["curve_fid"], rel=1e-3)


def test_without_an_evaluation_set_or_images_it_is_off(scores_of):
    assert scores_of().on and not scores_of(images=0).on and not scores_of(chosen=EvaluationSet()).on


def test_what_does_not_fit_is_named_before_anything_is_trained(trainer, scores_of, shards, stage_of, scored, sections, sidecars):
    with pytest.raises(UserError, match=r"^evaluation\.curve\.images: 3; give 4 or more, or 0 for no scores$"):
        scores_of(images=3).prepare()
    with pytest.raises(UserError, match="2 sidecars of images, 1 of captions"):
        scores_of(chosen=EvaluationSet(shards.images, shards.captions[:1])).prepare()
    encoded_by(scored, text_encoder="embedded:clip")
    trainer.run(stage_of(), scored, expect=1, sections=sections(), more=sidecars)
    encoded_by(scored, text_encoder=stage_of().text_encoder)
    told = f"error: models.text_encoder: {stage_of().text_encoder} is not what the samples of {scored} were encoded with"
    assert trainer.log().read_text().splitlines()[-1].startswith(told) and trainer.newest() == 0


def test_another_autoencoder_than_that_of_the_latents_is_named(stage_of, scored, vae, tmp_path):
    manifest = Manifest.read(scored)
    check_frozen(manifest, "vae", str(vae))
    (tmp_path / "copy").mkdir()
    for file in Path(vae).iterdir():
        (tmp_path / "copy" / file.name).write_bytes(file.read_bytes())
    check_frozen(manifest, "vae", str(tmp_path / "copy"))  # the same at another place
    with pytest.raises(UserError) as caught:
        check_frozen(manifest, "vae", "embedded:vae")
    told = f"models.vae: embedded:vae is not what the samples of {scored} were encoded with, {vae}@"
    assert str(caught.value).startswith(told) and "\n" not in str(caught.value)


def point(images, fid, id_="a"):
    return {"images": images, "curve_fid": fid, "curve_clip_score": 20.0, "curve_images": 8, "curve_id": id_}


def test_the_best_up_to_every_checkpoint_is_kept(tmp_path):
    lines = [{"images": 10, "loss": 1.0}]
    best = Best(tmp_path / "best", lines)
    assert best.point() is None
    for line in (point(10, 5.0), point(20, 3.0), point(30, 4.0), point(40, 1.0), point(50, None), point(60, float("nan"))):
        best.keep(line, {"weight": torch.tensor([float(line["images"])])})
        lines.append(line | ({"curve_fid": None} if line["images"] == 60 else {}))
    kept = lambda: sorted(int(file.stem) for file in (tmp_path / "best").iterdir())  # noqa: E731
    assert kept() == [10, 20, 40] and best.point()["images"] == 40 and best.point(39) == replace_id(point(20, 3.0))
    best.prune([15, 35, 60])
    assert kept() == [10, 20, 40]
    best.prune([35, 60])
    assert kept() == [20, 40]
    best.prune([60])
    assert kept() == [40] and load_file(best.file(40))["weight"] == 40
    lines.append(point(70, 9.0, "b"))
    assert best.point()["images"] == 70


def replace_id(line):
    return {key: value for key, value in line.items() if key != "curve_id"}


def test_a_run_that_goes_on_from_before_the_best_forgets_it(tmp_path):
    Best(tmp_path / "best", []).keep(point(40, 1.0), {"weight": torch.zeros(1)})
    Best(tmp_path / "best", [point(20, 3.0)]).prune([20])
    assert not list((tmp_path / "best").iterdir())


def test_sample_grids_show_the_first_captions_of_the_evaluation_set(finished):
    grids = sorted((finished.work() / "samples").glob("*.png"))
    assert len(grids) > 1
    for file in grids:
        with Image.open(file) as image:
            assert json.loads(image.text["grid"])["prompts"] == [*COLOURS, *COLOURS]
