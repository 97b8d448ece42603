"""Where images come from: a section a kind of source, told apart by the key `kind`."""

from typing import Annotated, Literal, get_args

from pydantic import Field

from pipeline.config.fields import Section, result


class Source(Section):
    """What all kinds of source share."""

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
    min_side: int = result(256, "images with a shorter side are left out, in pixels", ge=8)
    store_side: int = result(512, "larger images are stored with this short side, in pixels", ge=8)
    upscale: bool = result(False, "train on images smaller than a stage's resolution, enlarged")


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
    path: str = result(doc="a tar, or a glob of tars")


class CocoSource(Source):
    """A folder of images and an annotation file in COCO's caption format."""

    kind: Literal["coco"] = result()
    images: str = result(doc="folder of the images")
    annotations: str = result(doc="JSON file with `images` and `annotations`")
    attributes: str | None = result(None, "JSON file {image id: attributes} that a detector is scored against")


class FolderSource(Source):
    """Your own images, with metadata.jsonl, .csv or .parquet (columns file_name and text), or a .txt beside each."""

    kind: Literal["folder"] = result()
    path: str = result(doc="folder, searched with its sub-folders")


AnySource = Annotated[SyntheticSource | WebdatasetSource | CocoSource | FolderSource, Field(discriminator="kind")]
KINDS = {cls.model_fields["kind"].annotation.__args__[0]: cls for cls in get_args(get_args(AnySource)[0])}
