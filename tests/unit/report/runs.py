"""The files of a finished run as the steps write them, with made-up numbers and scenes for pictures."""

import base64
import io
import json
import math
from types import SimpleNamespace

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from pipeline.config.steps import Settings
from pipeline.embedded.scenes import caption, draw_scene, render
from pipeline.report.page import Further

ASKED = {"score": 0.61, "tasks": {"single_object": 1.0, "color_attr": 0.22}, "images": 12, "self_test": 0.98}  # on the card
SHARES = {"colour": 0.93, "shape": 0.81, "size": 0.88, "position": 0.97, "background": 0.995, "number": 0.98}
STAGES = (
    ("low_masked", 32, 0.75, 64000, 900.0),
    ("low_full", 32, 0.0, 32000, 420.0),
    ("high_full", 64, 0.0, 9600, 110.0),
)
NASTY = '<script>alert("1")</script> & "quotes" \u202eright to left 🙂'


def write(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")
    return path


def picture(index, split="heldout", px=64):
    content = io.BytesIO()
    render(draw_scene(0, split, index), px).save(content, format="png")
    return content.getvalue()


def uri(content):
    return "data:image/png;base64," + base64.b64encode(content).decode()


def write_gallery(folder, pairs=16, name="gallery.json"):
    names = [caption(draw_scene(0, "heldout", i)) for i in range(pairs)]
    names[1] = NASTY
    entries = [
        {"index": i, "key": f"{i:06d}", "caption": text, "clip_score": 20.5 - i / 4,
         "generated": uri(picture(i + 100)), "real": uri(picture(i))}
        for i, text in enumerate(names)
    ]  # fmt: skip
    return write(folder / name, entries)


def write_evaluation(folder):
    one, two = {"images": 512, **SHARES}, {"images": 128, **SHARES, "shape": 0.52}
    perfect = {
        "one_object": {"images": 512, **dict.fromkeys(SHARES, 1.0)},
        "two_objects": {"images": 128, **dict.fromkeys(SHARES, 0.99)},
    }
    metrics = {
        "fid": 8.314, "kid": 0.00213, "kid_std_error": 0.0004, "clip_score": 29.25, "clip_score_real": 31.5,
        "accuracy": {"one_object": one, "two_objects": two}, "detector_self_test": perfect, "accuracy_vae": perfect,
    }  # fmt: skip
    identity = {"ref": "embedded:clip", "class": "CLIPModel", "sha256": "ab" * 32}
    facts = {
        "images": 640, "real_images": 1280, "px": 64, "ids_sha256": "cd" * 32, "captions_sha256": "ef" * 32,
        "feature_network": {"name": "embedded:clip", "identity": "ab" * 32, "width": 64, "input_px": 64},
        "clip_score_model": identity, "resize": "clean", "image_format": "png", "reference_preparation": "stored image, cropped",
        "sampler": {"name": "heun", "steps": 12, "guidance": 3.0, "seed": 0, "sigma_data": 0.9, "sigma_min": 0.002,
                    "sigma_max": 80.0, "rho": 7.0, "p_mean": -0.6, "p_std": 1.2, "precision": "float32"},
        "weights": {"file": "ema.safetensors", "sha256": "12" * 32, "ema": True, "images_seen_total": 105600,
                    "fingerprint": "f" * 12},
        "models": {"vae": identity, "text_encoder": identity}, "comparable_to_published": False,
        "why_not": ["the features are of embedded:clip, not of Inception", "640 images, not 30,000"], "warnings": [],
        "config_fingerprint": "0123456789ab", "git_commit": "34" * 20, "versions": {"python": "3.11.7", "torch": "2.15.0"},
        "device": "CPU (2 threads)", "drawn": 640, "seconds": {"loading": 14.2, "sampling": 38.0},
    }  # fmt: skip
    scale = {
        "floor": {"fid": 0.61, "images": 640},
        "vae": {"fid": 2.05, "images": 640},
        "ceiling": {"fid": 152.3, "images": 640},
    }
    return write(folder / "card.json", {"metrics": metrics, "scale": scale, **facts})


def metrics_lines(images, rate, first_loss):
    """As many lines as training would write, an interval of 1,280 images each."""
    for seen in range(1280, images + 1, 1280):
        loss = first_loss * (0.55 + 0.45 * math.exp(-seen / 20000)) + 0.02 * math.sin(seen)
        yield {
            "images": seen, "step": seen // 64, "loss": loss, "loss_by_noise": [1.3 * loss, loss, 0.7 * loss, 0.4 * loss],
            "grad_norm": 0.4, "learning_rate": 1e-3 * min(1, seen / 3200), "images_per_second": rate + 20 * math.cos(seen),
            "seconds": seen / rate, "ema_decay": 0.995, "epoch": seen / 8000, "share_of_peak": 0.31, "skipped_steps": 0,
        }  # fmt: skip
        if seen == 2560:  # an interval in which no step was taken
            yield {"images": seen, "loss": None, "loss_by_noise": [None] * 4, "grad_norm": None, "learning_rate": 1e-3,
                   "images_per_second": rate, "seconds": seen / rate, "skipped_steps": 20}  # fmt: skip
        if seen % 3200 == 0:
            yield {"images": seen, "validation_loss": 0.8 * loss, "validation_by_sigma": {"0.2": loss, "2": 0.6 * loss}}


def write_stage(folder, number):
    name, px, mask, images, rate = STAGES[number]
    total = sum(stage[3] for stage in STAGES[: number + 1])
    summary = {
        "stage": name, "fingerprint": str(number) * 12, "parent": None, "manifest": "a" * 12,
        "config": {"name": name, "stage": {"px": px, "mask_ratio": mask, "images": images}, "text_tokens": None},
        "model": {"dim": 96, "depth": 5}, "diffusion": {"sigma_data": 0.9},
        "vae": "embedded:vae", "text_encoder": "embedded:clip",
        "parameters": 1_512_345, "images_seen": images, "images_seen_total": total, "loss": {"first": 1.1, "last": 0.5},
        "training_flops": 1e12 * images, "seconds": {"start": 4.0, "training": images / rate, "samples": 1.5},
        "images_per_second": rate, "device": "CPU (2 threads)", "device_hours": round((images / rate + 5.5) / 3600, 6),
        "share_of_peak": 0.31, "peak": {"tflops": 0.1, "source": "measured"}, "skipped_steps": 20,
        "plan": {"share_of_peak": 0.45, "device_hours": round(images / rate / 5000, 6), "dollars": 0.1},
        "best": {"images": images, "validation_loss": 0.4},
        "precision": "float32", "processes": 1, "git_commit": "34" * 20, "versions": {"torch": "2.15.0"},
    }  # fmt: skip
    write(folder / name / "summary.json", summary)
    lines = metrics_lines(images, rate, 1.2 - 0.1 * number)
    (folder / name / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    (folder / name / "samples.png").write_bytes(picture(number, "train", 128))
    return folder / name / "summary.json"


def write_manifest(folder, number):
    name, px = STAGES[number][:2]
    small = {"below_px": 310} if px > 32 else {}
    left_out = {"duplicate": 10, "in_evaluation_set": 1, "near_evaluation_set": 1, "empty_caption": 4, **small}
    trained = 5990 - sum(left_out.values())
    licences = {"CC BY 4.0": trained - 1520, "CC0 <i>": 1500, **{f"other {n:02}": 1 for n in range(20)}}
    captions = {"collected": 7000, "left_out": {"caption_in_evaluation_set": 30, "image_left_out": 20}, "trained": 6950}
    counts = {
        "scenes": {"seen": 6000, "bad": {"truncated": 3, "too_small": 7}, "collected": 5990, "left_out": left_out,
                   "trained": trained, "captions": captions, "licences": licences},
        "scenes_synthetic": {"seen": 4000, "bad": {}, "collected": 4000, "left_out": {"duplicate": 1}, "trained": 3999,
                             "captions": {"collected": 4000, "left_out": {"image_left_out": 1}, "trained": 3999},
                             "licences": {"unknown": 3999}},
    }  # fmt: skip
    shards = [{"source": "scenes", "role": "real"}, {"source": "scenes_synthetic", "role": "synthetic"}]
    manifest = {
        "kind": "manifest",
        "stage": name,
        "px": px,
        "samples": 9000,
        "files": {},
        "shards": shards,
        "counts": counts,
    }
    return write(folder / f"{name}.json", manifest)


def write_grids(results, prompts=("a red circle", NASTY, "two squares")):
    """Grids that say what they show, the same prompts in every stage; pictures of one size in all cells."""
    for name, px, *_ in STAGES:
        image = Image.new("RGB", (len(prompts) * px, px))
        for place in range(len(prompts)):
            image.paste(render(draw_scene(0, "train", place), px), (place * px, 0))
        info = PngInfo()
        info.add_text("grid", json.dumps({"images": len(prompts), "columns": len(prompts), "prompts": prompts}))
        image.save(results / "train" / name / "samples.png", pnginfo=info)


def score_lines(name):
    """FID and CLIP score while training, best in the last stage, one point scored in another way."""
    place, images = next((place, stage[3]) for place, stage in enumerate(STAGES) if stage[0] == name)
    for step, part in enumerate((0.5, 1.0)):
        yield {"images": int(part * images), "curve_fid": 40.0 - 12 * place - 4 * step, "curve_clip_score": 20.0 + place + step,
               "curve_images": 96, "curve_id": "new", "device_hours": 0.01 * (step + 1), "dollars": 0.001}  # fmt: skip
    yield {"images": images // 4, "curve_fid": 0.5, "curve_clip_score": 1.0, "curve_images": 8, "curve_id": "old",
           "device_hours": 0.001, "dollars": 0.0}  # fmt: skip


def add_scores(results):
    for name, *_ in STAGES:
        file = results / "train" / name / "metrics.jsonl"
        lines = [json.loads(line) for line in file.read_text().splitlines()]
        lines = sorted([*lines, *score_lines(name)], key=lambda line: (line["images"], line.get("curve_id") == "new"))
        file.write_text("".join(json.dumps(line) + "\n" for line in lines))


GENEVAL = {
    "score": 0.61, "images": 12, "prompts": {"source": "scenes", "sha256": "0" * 64, "count": 6, "of": 24},
    "tasks": {"single_object": {"accuracy": 1.0, "images": 4, "prompts": 2},
              "color_attr": {"accuracy": 0.22, "images": 8, "prompts": 4}},
    "detector": {"ref": "scenes"}, "clip": None, "thresholds": {"detection": 0.3},
    "self_test": {"source": "attributes", "images": 256, "objects": 300, "recall": 0.984, "colour_accuracy": 0.991},
}  # fmt: skip


def write_geneval(folder):
    failures = [{"task": "color_attr", "prompt": NASTY, "reason": "1 circle wanted, none <found>", "image": uri(picture(7))}]
    return write(folder / "geneval.json", {**GENEVAL, "failures": failures})


def write_benchmarks(folder):
    """Of two jobs of collect, one too short to be measured, of training, and of sources and rules that are not of this run."""
    head = "s\th:m:s\tmax_rss\tmax_vms\tmax_uss\tmax_pss\tio_in\tio_out\tmean_load\tcpu_time\n"
    jobs = {"collect/scenes-00000": (36.0, "210.5", "30.5"), "collect/scenes_synthetic-00000": (0.5, "NA", "NA"),
            "collect/gone-00000": (900.0, "9000", "900"), "train/low_masked": (72.0, "1070.7", "56.0"),
            "train/high_full": (108.0, "1409.3", "116.7"), "evaluate/high_full": (70.0, "900", "-"),
            "embedded_coco": (6.0, "100", "5"), "embedded_clip": (6000.0, "100", "5"),
            "ablation/masked-0": (500.0, "100", "5")}  # fmt: skip
    for name, (seconds, memory, cpu) in jobs.items():
        file = folder / f"{name}.tsv"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{head}{seconds}\t0:00:36\t{memory}\t-\t-\t-\t0.0\t0.0\t80\t{cpu}\n")
    return folder


def write_guidance(file):
    points = [{"guidance": scale, "fid": fid, "clip_score": clip} for scale, fid, clip in ((1.0, 12.0, 25.0), (3.0, 8.3, 29.2))]
    return write(file, {"stage": "high_full", "points": points, "best": 3.0, "by": "fid", "images": 640})


def write_ablation(file):
    spread = {"fid": {"mean": 9.1, "std": 0.4, "values": []}, "clip_score": {"mean": 28.0, "std": None, "values": []}}
    arms = {
        name: {"title": f"variant <{name}>", "mask_ratio": 0.75, "parameters": 1000, "images": 500, **spread} for name in "ab"
    }
    claim = {"better": "a", "worse": "b", "paper": "9.1 < 12 <i>", "difference": 1.25, "interval": [0.5, 2.0], "verdict": "holds"}
    write(file, {"training_flops": 1e15, "seeds": [0, 1, 2], "device": "CPU", "arms": arms, "claims": [claim]})
    file.with_suffix(".png").write_bytes(picture(3))
    return file


PROCESSES = (
    ("collect", "scenes-00000", 6.1, []),
    ("collect", "coco-00000", 3.2, []),
    ("encode", "scenes-00000", 21.5, ["torch", "diffusers"]),
)


def write_records(folder):
    for started, (step, name, seconds, imports) in enumerate(PROCESSES):
        times = {"started": 100.0 - started, "seconds": seconds}
        record = {"step": step, "name": name, **times, "peak_memory_mb": 300, "imports": imports}
        write(folder / f"{step}-{name}.json", record)
    return folder


def write_run(folder):
    """Paths of all files that a report reads, and settings with a price."""
    results = folder / "results"
    evaluation = results / "eval" / STAGES[-1][0]
    write_gallery(evaluation)
    write_gallery(evaluation, 6, "failures.json")
    (evaluation / "samples.png").write_bytes(picture(5))
    return SimpleNamespace(
        results=results,
        settings=Settings(report={"title": "Scenes <1>", "dollars_per_hour": 0.1}),
        card=write_evaluation(evaluation),
        evaluation=evaluation,
        stages=[write_stage(results / "train", i) for i in range(len(STAGES))],
        manifests=[write_manifest(results / "manifests", i) for i in range(len(STAGES))],
        records=write_records(results / "work" / "processes"),
    )


def write_everything(folder):
    """A run with all that can be on a page, and hostile text in it; returns it with what goes to the page beside."""
    finished = write_run(folder)
    results = finished.results
    write_grids(results)
    add_scores(results)
    write_geneval(finished.evaluation)
    further = Further(write_benchmarks(results / "benchmarks"), write_guidance(results / "guidance.json"),
                      write_ablation(results / "ablation.json"))  # fmt: skip
    return finished, further
