"""The captions that a model writes for a shard: batch by batch, each kept as soon as it is there."""

import io
import itertools
import sys
import tarfile
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from pipeline.artifacts import Sidecar
from pipeline.caption.ahead import ahead
from pipeline.caption.journal import Batch, Journal, Written
from pipeline.config.schema import Captioning
from pipeline.config.steps import CaptionSlice, Settings
from pipeline.errors import UserError
from pipeline.fingerprint import code_fingerprint, digest
from pipeline.frozen.models import content, identity
from pipeline.runtime import pick_device, progress

if TYPE_CHECKING:
    from pipeline.frozen.captioner import Captioner

Picture = tuple[str, Image.Image]  # key and RGB image
STORED = ("JPEG", "PNG")  # what a shard holds
BATCHES_AHEAD = 2  # decoded while the model writes


def write_captions(
    slice_: CaptionSlice, settings: Settings, shard: Sidecar, wanted: Collection[str], journal: Path
) -> tuple[dict[str, Any], Batch]:
    """The identity of the captioner and what it writes for the images `wanted`; what `journal` has is not written again.

    Raises: UserError if the captioner cannot be loaded or an image is not in the shard.
    """
    model = identity(slice_.captioner)
    parts = {"slice": slice_.results(), "model": content(model), "images": shard.sha256("images")}
    parts["code"] = code_fingerprint("pipeline.caption.captions")
    with Journal(journal, digest(parts, 64)) as book:
        if len(book.written) < len(wanted):
            _write_the_rest(slice_, settings, shard.file("images"), wanted, book)
        return model, book.written


def _write_the_rest(slice_: CaptionSlice, settings: Settings, tar: Path, wanted: Collection[str], book: Journal) -> None:
    if book.written:
        print(f"{book.path}: {len(book.written)} of {len(wanted)} images have their captions", file=sys.stderr, flush=True)
    captioner, samples = _captioner(slice_, settings), (slice_.captioning or Captioning()).samples
    left = set(wanted) - set(book.written)
    batches = ahead(_batches(_pictures(tar, left), settings.runtime.caption_batch), BATCHES_AHEAD)
    with progress(f"captions {tar.stem}", len(wanted), initial=len(book.written)) as bar:
        for batch in batches:
            book.add(_captions(captioner, batch, samples))
            bar.update(len(batch))
    if lost := set(wanted) - set(book.written):
        raise UserError(f"{tar}: no image of the sample '{min(lost)}'; the shard is damaged, collect it again")


def _captioner(slice_: CaptionSlice, settings: Settings) -> "Captioner":
    import torch

    from pipeline.frozen.captioner import Decoding, load_captioner

    wanted, device = slice_.captioning or Captioning(), pick_device(settings.runtime.device)
    decoding = Decoding(wanted.max_tokens, wanted.temperature, wanted.top_p, wanted.seed)
    return load_captioner(
        slice_.captioner, device, wanted.prompts, decoding, getattr(torch, slice_.dtype), remote_code=wanted.remote_code
    )


def _captions(captioner: "Captioner", batch: list[Picture], samples: int) -> Batch:
    """All captions of some images: prompt by prompt, the samples of a prompt next to each other."""
    keys, images = [key for key, _ in batch], [image for _, image in batch]
    written: Batch = {key: [] for key in keys}
    for place, prompt in enumerate(captioner.prompts):
        for sample in range(samples):
            for key, caption in zip(keys, captioner.write(images, keys, prompt, sample), strict=True):
                written[key].append(Written(None if prompt is None else place, caption.text, caption.cut))
    return written


def _pictures(tar: Path, keys: Collection[str]) -> Iterator[Picture]:
    """The images of these keys, in the shard's order, at their stored size."""
    with tarfile.open(tar) as archive:
        for member in archive:
            key, _, kind = member.name.rpartition(".")
            if kind != "json" and key in keys:
                yield key, _decode(archive.extractfile(member).read(), tar, key)


def _decode(data: bytes, tar: Path, key: str) -> Image.Image:
    try:
        return Image.open(io.BytesIO(data), formats=STORED).convert("RGB")
    except MemoryError:
        raise
    except Exception as error:  # decoders raise whatever damaged bytes lead to
        raise UserError(f"{tar}: image '{key}' does not decode ({error}); the shard is damaged, collect it again") from error


def _batches(items: Iterable[Picture], size: int) -> Iterator[list[Picture]]:
    iterator = iter(items)
    while batch := list(itertools.islice(iterator, size)):
        yield batch
