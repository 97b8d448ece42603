"""Where images come from: a section a kind of source, told apart by the key `kind`.

A FILES key names files on this machine (`data/*.tar`), on the Hugging Face hub
(`hf://datasets/OWNER/NAME@REVISION/PATH`, the revision a commit that stays) or on a web server (`https://…`). `{000..199}`
counts; `*` matches, where files can be listed.
"""

import glob
from typing import Annotated, ClassVar, Literal, get_args

from braceexpand import braceexpand
from pydantic import Field, model_validator

from pipeline.config.fields import Name, Section, report, result, runtime


class Expect(Section):
    """What `python -m pipeline plan` takes for granted of a source, before anything of it is there."""

    images: int | None = report(None, "images of the whole source", ge=0)
    gigabytes: float | None = report(None, "10^9 bytes to fetch for the whole source; null: none, its files are here", ge=0)
    usable: float = report(1.0, "share of its images that reaches training, from experience", ge=0, le=1)


class Source(Section):
    """What all kinds of source share."""

    least_yield: ClassVar[float] = 0.9  # what min_yield is unless given
    table_keys: ClassVar[tuple[str, ...]] = ()  # keys that make the table which all shards share; none: there is no table

    role: Literal["real", "synthetic", "evaluation"] = result(
        "real", "what the images are used as; `evaluation` is never trained on"
    )
    caption: Literal["keep", "fill", "write", "add"] = result(
        "keep",
        "`keep` the given caption, `fill` in missing ones with the captioner, `write` all anew, or `add` one to the given",
    )
    all_captions: bool = result(
        False, "keep every caption an image came with, not the first alone; training picks one each time", neutral=True
    )
    shards: int = result(1, "fixed number of shards the source is split into; about 20,000 images each", ge=1, le=2000)
    fraction: float = result(
        1.0,
        "share of the source that is used: whole files where there are many; the same samples each time",
        gt=0,
        le=1,
        neutral=True,
    )
    min_side: int = result(256, "images with a shorter side are left out, in pixels", ge=8)
    store_side: int = result(512, "larger images are stored with this short side, in pixels", ge=8)
    upscale: bool = result(False, "train on images smaller than a stage's resolution, enlarged")
    max_nsfw: float | None = result(
        None, "images with a higher score of a name that has `nsfw` in it are left out; null: none is", ge=0, neutral=True
    )
    license: str | None = result(None, "licence of images that come without one", neutral=True)
    min_yield: float | None = runtime(
        None,
        "share of the wanted samples, and of the wanted archives, that must be received, or the run stops; null: 0.5 for "
        "url_list, 0.99 for archives and hf_parquet, 0.9 else",
        ge=0,
        le=1,
    )
    expect: Expect = report(Expect(), "for `python -m pipeline plan`")


class Columns(Section):
    """Names of a table's columns. A dot leads into a nested one."""

    id: str | None = result(
        None, "what names a sample; an image in an archive is found by it; null: a hash of its URL, or its place in the file"
    )
    url: str = result("url", "where the image is; for url_list")
    image: str = result("image", "the image itself; for hf_parquet")
    captions: list[str] = result(["caption"], "captions, or lists of them, the first that is there is used")
    license: str | None = result(None, "licence of the image")
    sha256: str | None = result(None, "sha256 of the image's file")
    scores: dict[Name, str] = result({}, "scores by name, such as {nsfw: punsafe, aesthetic: aesthetic_score}")


class SyntheticSource(Source):
    """Scenes drawn by code: nothing is downloaded."""

    kind: Literal["synthetic"] = result()
    count: int = result(doc="number of scenes", ge=1)
    split: Literal["train", "heldout"] = result("train", "attribute combinations to draw from")
    seed: int = result(0, "seed of the scenes", ge=0)
    px: int = result(64, "width and height of a scene, in pixels", ge=32)
    two_objects: float = result(0.3, "share of scenes with two objects", ge=0, le=1)
    uncaptioned: float = result(0.0, "share of scenes that come without a caption", ge=0, le=1)


class WebdatasetSource(Source):
    """Tars of key.jpg + key.txt and/or key.json."""

    kind: Literal["webdataset"] = result()
    path: str = result(doc="FILES: tars, here, on the hub or on a web server")
    scores: dict[Name, str] = result({}, "scores by name, and the field of key.json that holds each", neutral=True)


class UrlListSource(Source):
    """A table of image URLs and captions, as CC12M and PD12M are published: parquet, TSV, CSV or JSON lines."""

    least_yield: ClassVar[float] = 0.5
    table_keys: ClassVar[tuple[str, ...]] = ("table", "header", "columns", "fraction")

    kind: Literal["url_list"] = result()
    table: str = result(doc="FILES: the table, in one or more files, plain or .gz")
    header: list[str] | None = result(None, "names of the columns of a TSV or CSV whose first line is data")
    columns: Columns = result(Columns(), "names of the columns")
    opt_out: list[str] = result(
        ["noai", "noimageai"], "words in a host's X-Robots-Tag for which its image is left out; []: it is not asked"
    )


class ArchivesSource(Source):
    """Tars, tgz or zips of images, and a table with their captions: SA-1B, JourneyDB, DiffusionDB."""

    least_yield: ClassVar[float] = 0.99
    table_keys: ClassVar[tuple[str, ...]] = ("table", "header", "columns")

    kind: Literal["archives"] = result()
    files: str | None = result(None, "FILES: the archives; or give `links`")
    links: str | None = result(None, "text file with a line an archive, its name and its URL, as Meta sends for SA-1B")
    table: str | None = result(
        None, "FILES: parquet, CSV, TSV, JSON lines, also inside a tar or zip; or a tar of a .txt an image; null: no captions"
    )
    header: list[str] | None = result(None, "names of the columns of a TSV or CSV whose first line is data")
    columns: Columns = result(
        Columns(), "names of the columns; `id` without folder and suffix is that of the image in its archive"
    )

    @model_validator(mode="after")
    def _files_or_links(self) -> "ArchivesSource":
        if (self.files is None) == (self.links is None):
            raise ValueError("give either `files` or `links`")
        return self


class HfParquetSource(Source):
    """Parquet files that hold images and captions, as most datasets on the Hugging Face hub do."""

    least_yield: ClassVar[float] = 0.99

    kind: Literal["hf_parquet"] = result()
    files: str = result(doc="FILES: the parquet files")
    columns: Columns = result(Columns(), "names of the columns")


class CocoSource(Source):
    """Images and an annotation file in COCO's caption format."""

    kind: Literal["coco"] = result()
    images: str = result(doc="folder of the images, or FILES: one zip of them")
    annotations: str = result(doc="JSON with `images` and `annotations`, or FILES: one zip that holds it")
    member: str | None = result(None, "path of the JSON inside a zip, such as annotations/captions_val2014.json", neutral=True)
    ids: str | None = result(
        None,
        "table with the ids of the images to use, in this order: a CSV with image_id and, to use it as the caption, prompt, "
        "or a text file with an id a line; a path or a URL; null: all, by id",
        neutral=True,
    )
    attributes: str | None = result(None, "JSON file {image id: attributes} that a detector is scored against")


class FolderSource(Source):
    """Your own images, with metadata.jsonl, .csv or .parquet (columns file_name and text), or a .txt beside each."""

    kind: Literal["folder"] = result()
    path: str = result(doc="folder, searched with its sub-folders")


AnySource = Annotated[
    SyntheticSource | WebdatasetSource | UrlListSource | ArchivesSource | HfParquetSource | CocoSource | FolderSource,
    Field(discriminator="kind"),
]
KINDS = {cls.model_fields["kind"].annotation.__args__[0]: cls for cls in get_args(get_args(AnySource)[0])}


def has_table(source: Source) -> bool:
    """Whether the shards of a source share a table, which the step `table` makes."""
    return bool(source.table_keys) and source.table is not None


def local_files(source: Source) -> list[str]:
    """Files on this machine that a source names, sorted. Those that globs match exist, the others may not; a folder is no
    file."""
    if isinstance(source, FolderSource):
        return sorted(glob.glob(f"{glob.escape(source.path)}/metadata.*"))
    named = [getattr(source, key, None) for key in ("path", "files", "links", "table", "annotations", "ids", "attributes")]
    if isinstance(source, CocoSource) and source.images.lower().endswith(".zip"):
        named.append(source.images)
    return sorted(file for pattern in named if pattern is not None for file in expanded(pattern))


def expanded(pattern: str) -> list[str]:
    """Files on this machine that a FILES pattern names, sorted, each once; none if they are elsewhere."""
    names = braceexpand(pattern) if "://" not in pattern else ()
    return sorted({file for name in names for file in (glob.glob(name, recursive=True) if glob.has_magic(name) else [name])})
