"""What the scores of a card are called and mean, and the scale to read them by: for the page and for the terminal."""

from pathlib import Path
from typing import Any, NamedTuple

from pipeline.errors import UserError
from pipeline.report.words import listed, score

Card = dict[str, Any]

ATTRIBUTES = ("colour", "shape", "position", "background", "size", "number")
PROMPTED = ATTRIBUTES[:4]  # every prompt names these; a size only sometimes, the number follows from the others
GROUPS = {"one_object": "one object", "two_objects": "two objects"}
REFERENCES = {"floor": "real images", "vae": "autoencoder", "ceiling": "untrained"}  # what a score is read beside


class Mark(NamedTuple):
    """A value on the scale of a score: the score itself (`model`), or one of `REFERENCES`."""

    kind: str
    name: str
    value: float

    @property
    def here(self) -> bool:
        return self.kind == "model"

    @property
    def text(self) -> str:
        return score(self.value)


class Score(NamedTuple):
    """One score in words: `short` says what `meaning` says in full, `error` is its standard error, its interval or empty.

    `marks` ascend; `on_scale` says whether they reach from the best possible to no skill at all.
    """

    name: str
    value: str
    error: str
    better: str
    short: str
    meaning: str
    marks: list[Mark]
    on_scale: bool = False

    def place(self, mark: Mark) -> float:
        """Where a mark stands between the first and the last, in percent. FID is a squared distance: its root is shown."""
        low, high, value = (max(m.value, 0) ** 0.5 for m in (self.marks[0], self.marks[-1], mark))
        return 100 * (value - low) / (high - low) if high > low else 0.0


class Column(NamedTuple):
    """Shares of right attributes by name: of which pictures, with how many objects, and how many pictures."""

    kind: str
    group: str
    images: int
    shares: dict[str, float]


def check_card(file: Path, card: Card) -> Card:
    """Raises: UserError if this is no evaluation card of a run."""
    missing = [key for key in ("fid", "kid", "clip_score", "scale", "feature_network", "stages", "cost") if key not in card]
    if missing:
        raise UserError(f"{file}: not the evaluation card of a run, it lacks {listed(missing)}; delete it and run again")
    return card


def weights_in_words(card: Card) -> str:
    """Which averaged weights of the last stage were evaluated, and after how many training images."""
    found = card["weights"]
    chosen = ", the lowest FID of the curve" if found["file"] == "best.safetensors" else ""
    averaged = ", averaged over training" if found["ema"] else ""
    return f"{found['file']}{averaged}{chosen}, after {found['images_seen_total']:,} images"


def scores(card: Card) -> list[Score]:
    """FID, KID and CLIP score."""
    return [_fid(card), _kid(card), _clip_score(card)]


def further_scores(card: Card) -> list[Score]:
    """Those of the others that the card has: distances in other networks, what the FID would be with more images or another
    resizing, and how the drawn images cover the real ones."""
    return [*_about_the_fid(card), *_other_distances(card), *_manifolds(card)]


# Key of the card: name, and what it says.
DISTANCES = {
    "cmmd": ("CMMD", "distance in CLIP's eyes by a kernel, times 1,000; steady from few images on"),
    "clip_fid": ("CLIP-FID", "the FID in CLIP's eyes, which sees what is shown more than how"),
    "fd_dino": ("FD-DINOv2", "the FID in DINOv2's eyes, nearer to what people find real"),
}
MANIFOLDS = {
    "precision": ("precision", "share of the drawn images that are like real ones"),
    "recall": ("recall", "share of the real images that are like drawn ones"),
    "density": ("density", "precision that outliers do not decide; about 1 for real images"),
    "coverage": ("coverage", "share of the real images that have a drawn one near; 0.97 for as many real images"),
}


def _other_distances(card: Card) -> list[Score]:
    found = []
    for key, (name, short) in DISTANCES.items():
        if card.get(key) is not None:
            rows = {kind: card["scale"][kind] or {} for kind in REFERENCES}
            marks = [Mark(kind, text, rows[kind][key]) for kind, text in REFERENCES.items() if key in rows[kind]]
            marks = _sorted([*marks, Mark("model", "this model", card[key])])
            meaning = f"{short[0].upper()}{short[1:]} ({card[f'{key}_model']['ref']})."
            ends = bool(card["scale"]["ceiling"]) and marks[-1].kind == "ceiling"
            found.append(Score(name, score(card[key]), "", "lower is better", short, meaning, marks, ends))
    return found


def _about_the_fid(card: Card) -> list[Score]:
    found = []
    other = next((mode for mode in card.get("fid_by_resize") or {} if mode != card["resize"]), None)
    if other:
        short = f"the FID with images resized in mode {other}"
        found.append(_plain(f"FID {other.partition('_')[0]}", card["fid_by_resize"][other], "lower is better", short))
    if card.get("fid_infinity") is not None:
        short = f"the FID without the bias of {card['images']:,} drawn images, extrapolated"
        found.append(_plain("FID∞", card["fid_infinity"], "lower is better", short))
        if card.get("fid_bias") is not None:
            told = f"{found[-1].meaning} The FID itself has a bias of {score(card['fid_bias'])}."
            found[-1] = found[-1]._replace(meaning=told)
    return found


def _manifolds(card: Card) -> list[Score]:
    named = [(name, card.get(key), short) for key, (name, short) in MANIFOLDS.items()]
    return [_plain(name, value, "higher is better", short) for name, value, short in named if value is not None]


def _plain(name: str, value: float, better: str, short: str) -> Score:
    return Score(name, score(value), "", better, short, f"{short[0].upper()}{short[1:]}.", [])


def _fid(card: Card) -> Score:
    scale, network = card["scale"], card["feature_network"]
    names = {
        "floor": "two draws of real images" + (f" ({scale['floor']['images']} each)" if scale["floor"] else ""),
        "vae": "real images through the autoencoder",
        "ceiling": "the model before training",
    }
    marks = [Mark(key, name, scale[key]["fid"]) for key, name in names.items() if scale[key]]
    meaning = (
        f"How far the drawn images as a set are from the real ones: the Fréchet distance between their features in "
        f"{network['name']}, {network['width']} numbers an image. "
        "The model is given the captions of these very images, so it can come out below two independent draws of real ones."
    )
    if card.get("fid_interval"):
        meaning += " The range beside it would hold 95 of 100 such sets drawn by this model."
    marks = _sorted([*marks, Mark("model", "this model", card["fid"])])
    short, on_scale = "distance of the drawn images from the real ones", bool(scale["ceiling"])
    return Score("FID", score(card["fid"]), _interval(card), "lower is better", short, meaning, marks, on_scale)


def _interval(card: Card) -> str:
    """What 95 of 100 sets of images of the same model would get."""
    low_high = card.get("fid_interval")
    return f"{score(low_high[0])}–{score(low_high[1])}" if low_high else ""


def _kid(card: Card) -> Score:
    meaning = "The same comparison by a kernel, without FID's bias from few images: 0 on average for two draws of one set."
    short, value = "the same by another measure, unbiased with few images", score(card["kid"])
    decimals = len(value.partition(".")[2])
    error = f"± {card['kid_std_error']:.{decimals}f}"
    return Score("KID", value, error, "lower is better", short, meaning, [])


def _clip_score(card: Card) -> Score:
    model = card["clip_score_model"]["ref"]
    meaning = f"How well each image fits its prompt in the eyes of {model}: 100 times the cosine of their embeddings."
    marks = [Mark("model", "this model", card["clip_score"]), Mark("floor", "the real images", card["clip_score_real"])]
    short, value = "how well the images fit their prompts", score(card["clip_score"])
    return Score("CLIP score", value, "", "higher is better", short, meaning, _sorted(marks))


def _sorted(marks: list[Mark]) -> list[Mark]:
    return sorted(marks, key=lambda mark: mark.value)


def accuracies(card: Card) -> list[Column]:
    """Prompt accuracies of the drawn images, and of the real and the reconstructed ones to compare; empty where the
    evaluation set comes without attributes."""
    kinds = {"accuracy": "drawn", "detector_self_test": "real", "accuracy_vae": "reconstructed"}
    return [
        Column(kind, GROUPS[group], shares["images"], {name: shares[name] for name in ATTRIBUTES})
        for key, kind in kinds.items()
        for group, shares in (card[key] or {}).items()
    ]


def prompt_accuracy(card: Card) -> float | None:
    """Mean over what every prompt names, of drawn images with one object."""
    shares = (card["accuracy"] or {}).get("one_object")
    return sum(shares[name] for name in PROMPTED) / len(PROMPTED) if shares else None
