"""Where the files of a shard lie: under names made of the model and all else that decides their content. What is at its
default adds nothing to a name, so that what was encoded before stays."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.artifacts import Sidecar
from pipeline.encode.shards import Target
from pipeline.frozen.families import computed_in, has_posterior
from pipeline.frozen.models import short_id
from pipeline.frozen.pixels import CROP

if TYPE_CHECKING:
    from pipeline.config.steps import EncodeSlice


def latents_target(folder: Path, shard: str, px: int, model: dict[str, Any], slice_: "EncodeSlice", images: Sidecar) -> Target:
    """{folder}/{px}-{id}/{shard}.arrow."""
    name = f"{px}-{short_id(model, **{'dtype': 'float16', 'crop': CROP, **latents_facts(model, slice_)})}"
    return Target(folder / name / f"{shard}.arrow", "latents", images.sha256("images"))


def latents_facts(model: dict[str, Any], slice_: "EncodeSlice") -> dict[str, Any]:
    """What decides latents beside model and px: the seed if a posterior is sampled, which one if it is not; and the
    buckets if images are not cropped to squares."""
    if not has_posterior(model):
        facts = {}  # one latent an image, whatever models.posterior says
    else:
        facts = {"seed": slice_.seed} if slice_.posterior == "sample" else {"posterior": slice_.posterior}
    if slice_.crop == "buckets":
        facts |= {"crop": slice_.crop, "max_aspect": slice_.max_aspect, "bucket_step": slice_.bucket_step}
    return facts | _computed_in(computed_in(slice_.vae, slice_.dtype))


def text_target(folder: Path, shard: str, slice_: "EncodeSlice", model: dict[str, Any], captions: Sidecar) -> Target:
    """{folder}/{id}/{shard}.arrow."""
    name = short_id(model, tokens=slice_.text_tokens, **text_facts(slice_))
    return Target(folder / name / f"{shard}.arrow", "text", captions.sha256("captions"))


def text_facts(slice_: "EncodeSlice") -> dict[str, Any]:
    """What decides text embeddings beside the model and their number."""
    padding = {} if slice_.text_padding == "attend" else {"padding": slice_.text_padding}
    return {"dtype": slice_.text_storage, **padding, **_computed_in(slice_.dtype)}


def _computed_in(dtype: str) -> dict[str, str]:
    return {} if dtype == "float32" else {"computed_in": dtype}
