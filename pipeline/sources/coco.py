"""A folder of images and an annotation file in COCO's caption format (https://cocodataset.org/#format-data).

Images are ordered by id and split into contiguous shards, so that shards read one after the other give that order.
"""

import json
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

from pipeline.config.sources import CocoSource
from pipeline.errors import UserError
from pipeline.ledger import Unusable
from pipeline.sources.sample import Inputs, Listing, Raw, read_named

Entry = tuple[int, Any]  # place in the file's list of images, and what stands there


def open_shard(name: str, source: CocoSource, shard: int, inputs: Inputs) -> Listing:
    """Images of one shard, with all their captions.

    Raises: UserError if a file is missing, is not JSON, or is no caption file.
    """
    if not Path(source.images).is_dir():
        raise UserError(f"sources.{name}.images: no folder {source.images}")
    where = f"sources.{name}.annotations: {source.annotations}"
    document = _read(where, Path(source.annotations))
    images = _list(where, document, "images")
    captions = _captions(where, document)
    attributes = _attributes(name, source.attributes)
    _report_unlisted(where, images, captions)
    mine = _share(images, source.shards, shard)
    licenses = _licenses(document)
    samples = (_sample(source, entry, captions, attributes, licenses) for entry in mine)
    return Listing(len(mine), "images", enumerate(samples, 1))


def _read(where: str, path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except OSError as error:
        raise UserError(f"{where}: cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: not JSON ({error})") from error


def _list(where: str, document: Any, key: str) -> list[Any]:
    if not isinstance(document, dict) or not isinstance(document.get(key), list):
        raise UserError(f"{where}: no list '{key}' at the top; COCO's captions_*.json has `images` and `annotations`")
    if not document[key]:
        raise UserError(f"{where}: its list '{key}' is empty")
    return document[key]


def _captions(where: str, document: Any) -> dict[int, list[Any]]:
    """Captions by image id, in the order of annotation ids; annotations without one stand where they are."""
    found: dict[int, list[Any]] = defaultdict(list)
    rows = [row for row in _list(where, document, "annotations") if isinstance(row, dict) and _is_id(row.get("image_id"))]
    if not any("caption" in row for row in rows):
        raise UserError(f"{where}: no annotation has an image_id and a caption; give COCO's captions_*.json, not its instances")
    for row in sorted(rows, key=lambda row: row["id"] if _is_id(row.get("id")) else sys.maxsize):
        found[row["image_id"]].append(row.get("caption"))
    return dict(found)


def _attributes(name: str, path: str | None) -> dict[str, Any]:
    where = f"sources.{name}.attributes: {path}"
    value = {} if path is None else _read(where, Path(path))
    if not isinstance(value, dict):
        raise UserError(f"{where}: must be an object {{image id: attributes}}")
    return value


def _licenses(document: dict[str, Any]) -> dict[int, Any]:
    rows = document.get("licenses")
    return {row["id"]: row.get("name") for row in rows if _is_id(row.get("id"))} if _is_table(rows) else {}


def _is_table(rows: Any) -> bool:
    return isinstance(rows, list) and all(isinstance(row, dict) for row in rows)


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _image_id(entry: Entry) -> float:
    """Entries without an id come last."""
    value = entry[1].get("id") if isinstance(entry[1], dict) else None
    return value if _is_id(value) else float("inf")


def _report_unlisted(where: str, images: list[Any], captions: dict[int, list[Any]]) -> None:
    unlisted = captions.keys() - {_image_id(entry) for entry in enumerate(images)}
    if unlisted:
        print(f"{where}: captions of {len(unlisted)} images that `images` does not list are left out", file=sys.stderr)


def _share(images: list[Any], shards: int, shard: int) -> list[Entry]:
    """Entries of a shard. Entries of one id stay together, or a key could be in two shards."""
    ordered = sorted(enumerate(images), key=_image_id)
    ranks = {value: rank for rank, value in enumerate(dict.fromkeys(map(_image_id, ordered)))}
    return [entry for entry in ordered if ranks[_image_id(entry)] * shards // len(ranks) == shard]


def _sample(
    source: CocoSource, entry: Entry, captions: dict[int, list[Any]], attributes: dict[str, Any], licenses: dict[int, Any]
) -> Raw:
    place, image = entry
    where = f"{source.annotations}: images[{place}]"
    if not isinstance(image, dict) or not _is_id(image.get("id")) or not isinstance(image.get("file_name"), str):
        return Raw(f"images_{place}", where, Unusable("bad_row", "needs an integer id and a text file_name"))
    return Raw(
        name=f"{image['id']:012d}",
        origin=image["file_name"],
        image=read_named(Path(source.images), image["file_name"]),
        captions=tuple(captions.get(image["id"], ())),
        several=True,
        url=image.get("coco_url") or image.get("flickr_url") or image.get("url"),
        license=licenses.get(image["license"]) if _is_id(image.get("license")) else None,
        attributes=attributes.get(str(image["id"])),
    )
