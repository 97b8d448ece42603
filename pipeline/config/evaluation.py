"""Keys of the evaluation and of the ablation."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from pipeline.config.fields import Name, Section, report, result, runtime
from pipeline.config.models import ModelRef

PICKSCORE = "hf:yuvalkirstain/PickScore_v1@a4e4367c6dfa7288a00c550414478f865b875800"

Guidance = Annotated[float, Field(ge=0)]


class Sampler(Section):
    """How images are drawn."""

    name: Literal["heun", "dpmpp_2m", "euler"] = result(
        "heun",
        "Heun's method as in the paper; DPM-Solver++ 2M and Euler take half the calls",
        neutral=True,
    )
    interval: tuple[float, float] | None = result(
        None, "noise levels, low and high, between which guidance acts (arXiv 2404.07724); null: all", neutral=True
    )

    @model_validator(mode="after")
    def _interval_is_one(self) -> "Sampler":
        if self.interval is not None and not 0 <= self.interval[0] < self.interval[1]:
            raise ValueError(f"interval: {list(self.interval)} is none; give two noise levels, the lower one first, from 0 on")
        return self


class GenEval(Section):
    """Prompts whose pictures a detector checks: which objects, how many, what colour, where (arXiv 2310.11513)."""

    prompts: str = result("scenes", "`scenes`: prompts of the embedded data; or GenEval's file, a path or a URL")
    prompts_sha256: str | None = result(None, "what that file must hash to", pattern=r"^[0-9a-f]{64}$")
    images_a_prompt: int = result(4, "pictures of a prompt", ge=1)
    limit: int | None = result(None, "prompts at most, spread over the tasks; null: all", ge=1)
    detector: str = result("scenes", "`scenes`: reads embedded scenes; or a Mask2Former, Grounding DINO or OWLv2 as in `models`")
    detector_threshold: float = result(0.3, "confidence of a detection at least", gt=0, lt=1)
    counting_threshold: float = result(0.9, "the same where objects are counted, as in GenEval", gt=0, lt=1)
    clip: ModelRef | None = result(None, "CLIP model that names colours; null: evaluation.clip_score")


class Curve(Section):
    """Scores on a small fixed set while a stage trains. Nothing here changes the weights."""

    images: int = runtime(0, "images to draw each time, 0: no scores; at most those of the evaluation set", ge=0)
    every_images: int = runtime(2_048_000, "training images between scores; a stage's end always has one", ge=1)
    steps: int = runtime(12, "sampling steps", ge=2)
    features: str | None = runtime(None, "feature network of the FID; null: evaluation.features")


class Evaluation(Section):
    """Zero-shot evaluation on a COCO-format set."""

    source: Name = result(doc="source with role `evaluation`")
    images: int | None = result(None, "images to sample, one a caption, in the order of image ids; null: all of the set", ge=4)
    features: str = result("inception", "feature network of FID and KID: `inception`, or a CLIP model as in `models`")
    clip_score: ModelRef = result("embedded:clip", "CLIP model of the CLIP score")
    clip_fid: ModelRef | None = result(None, "CLIP model of CLIP-FID (arXiv 2203.06026); null: none", neutral=True)
    cmmd: ModelRef | None = result(None, "CLIP model of CMMD (arXiv 2401.09603); null: none", neutral=True)
    dino: ModelRef | None = result(None, "DINOv2 model of FD-DINOv2 (arXiv 2306.04675); null: none", neutral=True)
    resize: Literal["clean", "legacy_pytorch"] = result(
        "clean", "clean-fid's resizing mode of the FID in the headline; the other stands beside it"
    )
    bootstrap: int = result(0, "resamples for the interval of the FID; 0: none", ge=0, neutral=True)
    sampler: Sampler = result(Sampler(), "how images are drawn", neutral=True)
    steps: int = result(30, "sampling steps", ge=2)
    guidance: float = result(5.0, "classifier-free guidance scale; 1 is none", ge=0)
    weights: Literal["ema", "best"] = result(
        "ema",
        "averaged weights at a stage's end, or `best`: those of the lowest FID of its curve, also for the model folder",
        neutral=True,
    )
    guidance_sweep: list[Guidance] = result([], "scales to evaluate the last stage at, each whole; empty: none", neutral=True)
    seed: int = result(0, "seed of the initial noise", ge=0)
    untrained_images: int = result(0, "images of the untrained model for the ceiling, at most one a caption; 0: none", ge=0)
    geneval: GenEval | None = result(None, "whether pictures show what the prompts name; null: not asked", neutral=True)
    prompt_sets: dict[Name, str] = result(
        {},
        "files of prompts to draw as pages, such as PartiPrompts and DrawBench: .tsv or .csv with a column Prompt(s), or .txt; "
        "a path or a URL",
        neutral=True,
    )
    prompts_a_set: int = result(64, "prompts of a set that are drawn, spread over its categories", ge=1, neutral=True)
    preference: list[Literal["hpsv2", "imagereward", "pickscore"]] = result(
        [], "preference scores of the samples; `hpsv2` and `imagereward` need their packages, installed apart", neutral=True
    )
    pickscore: ModelRef = result(PICKSCORE, "CLIP model of the preference score `pickscore` (arXiv 2305.01569)", neutral=True)
    curve: Curve = runtime(Curve(), "scores while training")


class Arm(Section):
    """One variant of the ablation."""

    stage: Name = result(doc="stage of `stages` that it trains; images follow from the budget")
    title: str = result(doc="what the table calls it", min_length=1)
    model: dict[str, object] = result({}, "keys of `model` that differ")


class Claim(Section):
    """Two variants of which one has the lower FID, as the paper found."""

    better: Name = report(doc="the variant of the lower FID")
    worse: Name = report(doc="the variant of the higher FID")
    paper: str = report(doc="what the paper measured", min_length=1)


class Ablation(Section):
    """Variants trained from scratch at the same training FLOPs, counted from the architecture, and evaluated alike."""

    arms: dict[Name, Arm] = result(doc="variants by name", min_length=2)
    seeds: list[int] = result([0, 1, 2], "a training of each variant for each seed", min_length=1)
    training_flops: float = result(doc="floating-point operations of one training", gt=0)
    claims: list[Claim] = report([], "what the paper says of them, to be compared")

    @model_validator(mode="after")
    def _names_and_seeds(self) -> "Ablation":
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds: {self.seeds} has one twice")
        for claim in self.claims:
            for name in (claim.better, claim.worse):
                if name not in self.arms:
                    raise ValueError(f"claims: no '{name}' in arms (known: {', '.join(self.arms)})")
        return self
