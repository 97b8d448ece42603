"""Images in a folder or a zip, and an annotation file in COCO's caption format (https://cocodataset.org/#format-data).

Images are ordered by id, or as a file of ids orders them, and split into contiguous shards, so that shards read one after
the other give that order. What is fetched stays: all shards read it.
"""

import json
import sys
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from pipeline.config.sources import CocoSource
from pipeline.errors import UserError
from pipeline.ledger import Unusable
from pipeline.sources.coco_ids import Asked, read_ids
from pipeline.sources.fraction import takes
from pipeline.sources.members import is_zip
from pipeline.sources.sample import Inputs, Listing, Raw, read_named
from pipeline.sources.zipped import ZippedFolder

MAX_JSON_BYTES = 2**31  # of captions_train2014.json it is 65 MB

Read = Callable[[str], bytes | Unusable]  # of a file name


class _Entry(NamedTuple):
    """An image to make a sample of."""

    place: int  # in the file's list of images
    image: Any  # what stands there
    asked: Asked | None = None  # the line of the file of ids that asks for it


def open_shard(name: str, source: CocoSource, shard: int, inputs: Inputs) -> Listing:
    """Images of one shard, with all their captions.

    Raises: UserError if a file is missing, cannot be fetched, is not JSON, or is no caption file; if the file of ids has
    one twice, or one that the annotations lack.
    """
    read = _images(name, source, inputs)
    where = f"sources.{name}.annotations: {source.annotations}"
    document = _annotations(name, where, source, inputs)
    images = _list(where, document, "images")
    captions = _captions(where, document)
    attributes = _attributes(name, source.attributes)
    _report_unlisted(where, images, captions)
    asked = None if source.ids is None else read_ids(name, _ids_file(name, source.ids, inputs))
    mine = _share(_ordered(images) if asked is None else _chosen(name, source, images, asked), source.shards, shard)
    licenses = _licenses(document)
    samples = (_sample(source, entry, read, captions, attributes, licenses) for entry in mine)
    return Listing(len(mine), "images", enumerate(samples, 1))


def _ids_file(name: str, ids: str, inputs: Inputs) -> Path:
    return _one_file(f"sources.{name}.ids", ids, inputs) if "://" in ids else Path(ids)


def _images(name: str, source: CocoSource, inputs: Inputs) -> Read:
    """What reads an image: from a folder, or from a zip."""
    root, where = Path(source.images), f"sources.{name}.images"
    if root.is_dir():
        return lambda file: read_named(root, file)
    zipped = ZippedFolder(f"{where}: {source.images}", _one_file(where, source.images, inputs))
    return lambda file: _read_zipped(zipped, file)


def _read_zipped(zipped: ZippedFolder, file: str) -> bytes | Unusable:
    if file.startswith("/") or ".." in PurePosixPath(file).parts:
        return Unusable("unsafe_member", "absolute path or path that leaves its folder")
    return zipped.read(file)


def _one_file(where: str, pattern: str, inputs: Inputs) -> Path:
    found = inputs.files.expand(where, pattern)
    if len(found) > 1:
        raise UserError(f"{where}: {pattern} matches {len(found)} files, and must be one")
    try:
        return inputs.files.fetch(found[0])
    except Unusable as failure:
        raise UserError(f"{where}: {found[0]} cannot be fetched: {failure}") from failure


def _annotations(name: str, where: str, source: CocoSource, inputs: Inputs) -> Any:
    path = _one_file(f"sources.{name}.annotations", source.annotations, inputs)
    if not is_zip(path):
        return _read(where, path)
    zipped = ZippedFolder(where, path)
    member = source.member or _only_json(f"sources.{name}.member", zipped)
    data = zipped.read(member, MAX_JSON_BYTES)
    if isinstance(data, Unusable):
        raise UserError(f"sources.{name}.member: {member} of {source.annotations}: {data.detail}{_offer(zipped)}")
    return _parse(where, data)


def _only_json(where: str, zipped: ZippedFolder) -> str:
    found = [file for file in zipped.names() if file.endswith(".json")]
    if len(found) != 1:
        raise UserError(f"{where}: name one of the zip's files{_offer(zipped)}")
    return found[0]


def _offer(zipped: ZippedFolder) -> str:
    found = sorted(file for file in zipped.names() if file.endswith(".json"))
    return f" (there are {', '.join(found[:20])})" if found else " (there is no .json)"


def _read(where: str, path: Path) -> Any:
    try:
        return _parse(where, path.read_bytes())
    except OSError as error:
        raise UserError(f"{where}: cannot be read ({error.strerror})") from error


def _parse(where: str, data: bytes) -> Any:
    try:
        return json.loads(data)
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


def _image_id(image: Any) -> float:
    """Entries without an id come last."""
    value = image.get("id") if isinstance(image, dict) else None
    return value if _is_id(value) else float("inf")


def _report_unlisted(where: str, images: list[Any], captions: dict[int, list[Any]]) -> None:
    unlisted = captions.keys() - set(map(_image_id, images))
    if unlisted:
        print(f"{where}: captions of {len(unlisted)} images that `images` does not list are left out", file=sys.stderr)


def _ordered(images: list[Any]) -> list[_Entry]:
    entries = [_Entry(place, image) for place, image in enumerate(images)]
    return sorted(entries, key=lambda entry: _image_id(entry.image))


def _chosen(name: str, source: CocoSource, images: list[Any], asked: list[Asked]) -> list[_Entry]:
    """The images that are asked for, in that order; all entries of an id that the annotations list twice."""
    listed: dict[float, list[_Entry]] = defaultdict(list)
    for place, image in enumerate(images):
        listed[_image_id(image)].append(_Entry(place, image))
    for one in asked:
        if one.id not in listed:
            raise UserError(f"sources.{name}.ids: {source.ids}:{one.line}: no image {one.id} in {source.annotations}")
    return [entry._replace(asked=one) for one in asked for entry in listed[one.id]]


def _share(entries: list[_Entry], shards: int, shard: int) -> list[_Entry]:
    """Entries of a shard. Entries of one id stay together, or a key could be in two shards."""
    ranks = {value: rank for rank, value in enumerate(dict.fromkeys(_image_id(entry.image) for entry in entries))}
    return [entry for entry in entries if ranks[_image_id(entry.image)] * shards // len(ranks) == shard]


def _sample(
    source: CocoSource,
    entry: _Entry,
    read: Read,
    captions: dict[int, list[Any]],
    attributes: dict[str, Any],
    licenses: dict[int, Any],
) -> Raw | None:
    """None if the key `fraction` passes it over."""
    image = entry.image
    if not isinstance(image, dict) or not _is_id(image.get("id")) or not isinstance(image.get("file_name"), str):
        where = f"{source.annotations}: images[{entry.place}]"
        return Raw(f"images_{entry.place}", where, Unusable("bad_row", "needs an integer id and a text file_name"))
    name = f"{image['id']:012d}"
    if not takes(name, source.fraction):
        return None
    prompt = () if entry.asked is None or entry.asked.caption is None else (entry.asked.caption,)
    return Raw(
        name=name,
        origin=image["file_name"],
        image=read(image["file_name"]),
        captions=(*prompt, *captions.get(image["id"], ())),
        several=True,
        url=image.get("coco_url") or image.get("flickr_url") or image.get("url"),
        license=licenses.get(image["license"]) if _is_id(image.get("license")) else None,
        attributes=attributes.get(str(image["id"])),
    )
