"""Two evaluation cards side by side, and what each score differs by where the two can be compared at all."""

from pathlib import Path
from typing import Any, NamedTuple

from rich import box
from rich.console import Console
from rich.table import Table

from pipeline.artifacts import read_json
from pipeline.errors import UserError
from pipeline.report.words import score

Card = dict[str, Any]

IMAGES = ("images", "ids_sha256", "px", "reference_preparation", "image_format")  # which images are compared, and how stored
CAPTIONED = ("images", "captions_sha256", "px", "image_format")
NETWORK = ("feature_network.identity", "feature_network.input_px")
GENEVAL = tuple(f"geneval.{key}" for key in ("images", "prompts.sha256", "prompts.count", "detector", "clip", "thresholds"))
WITH_FID = (*IMAGES, *NETWORK, "resize")
# What must be the same for a score of two cards to be of one kind.
DEPENDS_ON: dict[str, tuple[str, ...]] = {
    "fid": WITH_FID,
    "fid_by_resize.clean": (*IMAGES, *NETWORK),
    "fid_by_resize.legacy_pytorch": (*IMAGES, *NETWORK),
    "fid_infinity": WITH_FID,
    "kid": WITH_FID,
    "precision": WITH_FID,
    "recall": WITH_FID,
    "density": WITH_FID,
    "coverage": WITH_FID,
    "clip_fid": (*IMAGES, "clip_fid_model"),
    "cmmd": (*IMAGES, "cmmd_model"),
    "fd_dino": (*IMAGES, "fd_dino_model"),
    "clip_score": (*CAPTIONED, "clip_score_model"),
    "geneval.score": ("px", "image_format", *GENEVAL),
    **{f"accuracy.{group}.all": CAPTIONED for group in ("one_object", "two_objects")},
}
# What made the scores: printed where it differs, and no reason against a comparison.
MADE_BY = (
    "sampler", "weights", "models", "config_fingerprint", "git_commit", "versions", "device",
    "cost.dollars", "cost.device_hours", "cost.seconds", "stages",
)  # fmt: skip
OF_A_STAGE = ("name", "px", "images", "mask_ratio")  # of `stages`; times and costs stand in the sums
PLACES = ("ref", "file")  # where a model lies is not what it is


class Row(NamedTuple):
    """A score of both cards, None where a card has none, and why it must not be subtracted, or nothing."""

    name: str
    a: float | None
    b: float | None
    refused: str

    @property
    def difference(self) -> float | None:
        return None if self.refused or self.a is None or self.b is None else self.b - self.a


def run(a: Path, b: Path, side_by_side: bool = False) -> None:
    """Print both cards and what differs.

    Raises: UserError if a file is no card, or a score cannot be subtracted, unless `side_by_side` asks for no differences.
    """
    first, second = read_card(a), read_card(b)
    rows = compare(first, second)
    console = Console(markup=False, highlight=False)
    console.print(_table(rows, a, b, side_by_side))
    for name, left, right in made_differently(first, second):
        console.print(f"  {name}: {left} | {right}", soft_wrap=True)
    refused = [row for row in rows if row.refused]
    for row in refused:
        console.print(f"Not subtracted, {row.name}: {row.refused}", soft_wrap=True)
    if refused and not side_by_side:
        raise UserError(
            f"{a} and {b}: {len(refused)} of {len(rows)} scores must not be subtracted, for the reasons above; "
            "evaluate both alike, or give --side-by-side to see them without differences"
        )


def compare(a: Card, b: Card) -> list[Row]:
    """Every score that one of the cards has."""
    rows = []
    for name, needed in DEPENDS_ON.items():
        left, right = _at(a, name), _at(b, name)
        if left is not None or right is not None:
            rows.append(Row(name, left, right, _refusal(a, b, name, needed)))
    return rows


def _refusal(a: Card, b: Card, name: str, needed: tuple[str, ...]) -> str:
    if _at(a, name) is None or _at(b, name) is None:
        return ""
    pairs = [(key, _content(_at(a, key)), _content(_at(b, key))) for key in needed]
    return "; ".join(f"{key} differs ({_short(x)} and {_short(y)})" for key, x, y in pairs if x != y)


def made_differently(a: Card, b: Card) -> list[tuple[str, str, str]]:
    """Key and both values of what made the scores, where they differ."""
    left, right = ({key: value for name in MADE_BY for key, value in _flat(name, _at(card, name))} for card in (a, b))
    keys = [key for key in dict.fromkeys([*left, *right]) if left.get(key) != right.get(key)]
    return [(key, _short(left.get(key)), _short(right.get(key))) for key in keys]


def _flat(name: str, value: Any) -> list[tuple[str, Any]]:
    if name == "stages" and value is not None:
        return [("stages", [[stage[key] for key in OF_A_STAGE] for stage in value])]
    if isinstance(value, dict):
        return [pair for key, part in value.items() for pair in _flat(f"{name}.{key}", part)]
    return [(name, value)]


def _at(card: Card, name: str) -> Any:
    """A value by its dotted name, None where there is none."""
    value: Any = card
    for key in name.split("."):
        value = value.get(key) if isinstance(value, dict) else None
    return value


def _content(value: Any) -> Any:
    return {key: part for key, part in value.items() if key not in PLACES} if isinstance(value, dict) else value


def _short(value: Any) -> str:
    """On one line, hashes cut; text of a card is not trusted to be short or plain."""
    if isinstance(value, dict):
        value = value.get("revision") or value.get("sha256") or value
    text = "–" if value is None else str(value)
    text = "".join(letter if letter.isprintable() else "�" for letter in text)
    is_hash = len(text) >= 40 and all(letter in "0123456789abcdef+" for letter in text)
    return text[:12] if is_hash else text[:100] + ("…" if len(text) > 100 else "")


def read_card(file: Path) -> Card:
    """A card of a run or of one stage, with its scores on top. Raises: UserError if it is neither."""
    card = read_json(file)
    if isinstance(card, dict) and isinstance(card.get("metrics"), dict):
        card = {**card["metrics"], **card}
    missing = [name for name in ("fid", "images", "ids_sha256", "feature_network") if _at({"card": card}, f"card.{name}") is None]
    if missing:
        raise UserError(f"{file}: not an evaluation card, it lacks {', '.join(missing)}; give results/fid_coco.json of a run")
    return card


def _table(rows: list[Row], a: Path, b: Path, side_by_side: bool) -> Table:
    table = Table(box=box.SIMPLE_HEAD, header_style="dim", padding=(0, 1))
    table.add_column("metric")
    for title in (f"A: {a}", f"B: {b}", *([] if side_by_side else ["B - A"])):
        table.add_column(title, justify="right", overflow="fold")
    for row in rows:
        difference = "refused" if row.refused else _signed(row.difference)
        table.add_row(row.name, _number(row.a), _number(row.b), *([] if side_by_side else [difference]))
    return table


def _number(value: float | None) -> str:
    return "–" if value is None else score(value)


def _signed(value: float | None) -> str:
    return "–" if value is None else ("+" if value > 0 else "") + score(value)
