"""Text embeddings of a shard's captions, with their padding or without it."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.artifacts import Sidecar, text_schema
from pipeline.encode.shards import Bad, Target, block_writer, to_half
from pipeline.frozen.models import short_id
from pipeline.runtime import pick_device, progress

if TYPE_CHECKING:
    from pipeline.config.steps import EncodeSlice, Settings


def text_target(folder: Path, shard: str, slice_: "EncodeSlice", model: dict[str, Any], captions: Sidecar) -> Target:
    """{folder}/{id}/{shard}.arrow, the id from the model and all that decides its output."""
    name = short_id(model, dtype="float16", tokens=slice_.text_tokens, **_padding(slice_))
    return Target(folder / name / f"{shard}.arrow", "text", captions.sha256("captions"))


def _padding(slice_: "EncodeSlice") -> dict[str, str]:
    """Nothing where padding is kept, as files were before it could be dropped."""
    return {} if slice_.text_padding == "attend" else {"padding": slice_.text_padding}


def write_text(
    target: Target, model: dict[str, Any], slice_: "EncodeSlice", settings: "Settings", keys: list[str], captions: list[str]
) -> Sidecar:
    """Encode every caption; a row without one holds the embedding of "", so that rows stay those of the captions."""
    from pipeline.frozen.text import load_text_encoder

    encoder = load_text_encoder(slice_.text_encoder, slice_.text_tokens, pick_device(settings.runtime.device))
    facts = {"model": model, "dtype": "float16", **_padding(slice_)}
    bad: Bad = {}
    stored, size, schema = 0, settings.runtime.encode_batch, text_schema(encoder.shape, facts)
    with block_writer(target, schema) as writer, progress(f"text {target.path.stem}", len(keys), "captions") as bar:
        for start in range(0, len(keys), size):
            tokens, lengths = encoder.encode(captions[start : start + size])
            half, found = to_half(tokens.cpu().numpy(), start)
            counts = lengths.tolist()
            rows = [row[:count] for row, count in zip(half, counts, strict=True)] if "padding" in facts else half
            writer.add(keys[start : start + size], rows, counts)
            bad |= found
            stored += sum(counts)
            bar.update(len(counts))
    saved = {"tokens_stored": stored, "tokens_padded": len(keys) * encoder.shape[0]} if "padding" in facts else {}
    return target.describe(len(keys), encoder.shape, bad, {**facts, **saved})
