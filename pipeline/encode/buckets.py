"""Buckets of aspect ratio: the sizes that images are brought to where they are not all cropped to squares (SDXL,
arXiv 2307.01952, appendix I). Images of one bucket make a batch, so that all shapes are known beforehand."""

from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple, Self

from PIL import Image

from pipeline.errors import UserError
from pipeline.frozen.pixels import covering

STEPS = 16  # that a side of px pixels is divided into, unless told otherwise: 64 pixels at 1024, as SDXL's


class Size(NamedTuple):
    """Of a bucket, in pixels."""

    height: int
    width: int


@dataclass(frozen=True)
class Buckets:
    """Sizes from the tallest to the widest; the square of px pixels a side is one of them, and none has a larger area."""

    sizes: tuple[Size, ...]

    @classmethod
    def of(cls, px: int, step: int, max_aspect: float) -> Self:
        """All sizes in multiples of `step`, which divides `px`, with no more than px² pixels and `max_aspect`, of which
        neither side can be a step longer."""
        sizes = []
        for height in range(step, px * px // step + 1, step):
            width = px * px // height // step * step
            fills = (height + step) * width > px * px
            if fills and max(height, width) <= max_aspect * min(height, width):
                sizes.append(Size(height, width))
        return cls(tuple(reversed(sizes)))

    def number(self, width: int, height: int) -> int:
        """Place of the bucket for an image of width x height pixels: the one whose log aspect ratio is nearest."""
        # Between two neighbours lies the geometric mean of their ratios; squared, all of it is whole numbers.
        return sum(
            width**2 * one.height * other.height > height**2 * one.width * other.width for one, other in pairwise(self.sizes)
        )

    def fitted(self, image: Image.Image) -> Image.Image:
        """The image, RGB, in the size of its bucket: resized until it just covers it, centre crop."""
        return covering(image, *self.sizes[self.number(*image.size)])


def step_of(px: int, factor: int, wanted: int | None) -> int:
    """`wanted`, or the least multiple of `factor`, by which the autoencoder divides a side, that makes at most STEPS equal
    parts of px. Raises: UserError if `wanted` is no multiple, or px none of it."""
    if wanted is None:
        return next(step for step in range(factor, px + 1, factor) if px % step == 0 and px <= STEPS * step)
    if wanted % factor or px % wanted:
        must = f"must be a multiple of {factor}, by which models.vae divides a side, and divide the {px} px of the stages"
        raise UserError(f"models.bucket_step: {wanted} {must}")
    return wanted
