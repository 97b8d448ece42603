"""Scenes drawn by code: contiguous ranges of the index, one a shard."""

import hashlib
import io
from collections.abc import Iterator

from PIL import Image

from pipeline.config.sources import SyntheticSource
from pipeline.embedded import scenes
from pipeline.sources.fraction import takes
from pipeline.sources.sample import Inputs, Listing, Raw


def open_shard(name: str, source: SyntheticSource, shard: int, inputs: Inputs) -> Listing:
    """Scenes of one shard; together the shards hold indices 0 to count - 1."""
    first, end = (source.count * place // source.shards for place in (shard, shard + 1))
    return Listing(end - first, "images", enumerate(_samples(source, first, end), 1))


def _samples(source: SyntheticSource, first: int, end: int) -> Iterator[Raw | None]:
    for index in range(first, end):
        name = f"{index:08d}"
        if not takes(name, source.fraction):
            yield None
            continue
        scene = scenes.draw_scene(source.seed, source.split, index, two_object_share=source.two_objects)
        given = () if _is_uncaptioned(source, index) else (scenes.caption(scene),)
        yield Raw(
            name=name,
            origin=f"scene {index} of {source.split}, seed {source.seed}",
            image=_png(scenes.render(scene, source.px)),
            captions=given,
            attributes=scene.attributes(),
        )


def _is_uncaptioned(source: SyntheticSource, index: int) -> bool:
    """By a hash of the index, so that neither the number of shards nor of scenes changes the choice."""
    chance = hashlib.sha256(f"uncaptioned {source.seed} {index}".encode()).digest()
    return int.from_bytes(chance[:8], "big") < source.uncaptioned * 2**64


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()
