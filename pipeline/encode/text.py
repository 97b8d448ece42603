"""Text embeddings of a shard's captions, with their padding or without it, in fp16 or int8."""

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from pipeline.artifacts import Sidecar, text_schema
from pipeline.encode.overlap import Behind, ahead
from pipeline.encode.shards import Bad, BlockWriter, Target, block_writer, to_half, to_int8
from pipeline.encode.targets import text_facts
from pipeline.frozen.text import TextEncoder, load_text_encoder
from pipeline.runtime import pick_device, progress

if TYPE_CHECKING:
    from pipeline.config.steps import EncodeSlice, Settings


class Embeddings:
    """The text of one shard while it is written."""

    def __init__(self, writer: BlockWriter, facts: dict[str, Any]) -> None:
        self._writer = writer
        self._drop, self._small = facts.get("padding") == "drop", facts["dtype"] == "int8"
        self.bad: Bad = {}
        self.rows = self.stored = 0

    def write(self, keys: list[str], tokens: Tensor, lengths: Tensor) -> None:
        """Embeddings [B, L, Dt] float32 and lengths [B], from wherever they are."""
        half, bad = to_half(tokens, self.rows)
        counts = lengths.tolist()
        values, *scales = (part.cpu().numpy() for part in (to_int8(half) if self._small else (half,)))
        self._writer.add(keys, self._kept(values, counts), counts, *(self._kept(column, counts) for column in scales))
        self.bad |= bad
        self.rows += len(counts)
        self.stored += sum(counts)

    def _kept(self, values: np.ndarray, counts: list[int]) -> Any:
        return [row[:count] for row, count in zip(values, counts, strict=True)] if self._drop else values


def write_text(
    target: Target, model: dict[str, Any], slice_: "EncodeSlice", settings: "Settings", keys: list[str], captions: list[str]
) -> Sidecar:
    """Encode every caption; a row without one holds the embedding of "", so that rows stay those of the captions."""
    device, dtype = pick_device(settings.runtime.device), getattr(torch, slice_.dtype)
    encoder = load_text_encoder(slice_.text_encoder, slice_.text_tokens, device, dtype=dtype)
    facts = {"model": model, **text_facts(slice_)}
    made = encode_text(target, encoder, facts, keys, captions, settings.runtime.encode_batch)
    saved = {"tokens_stored": made.stored, "tokens_padded": len(keys) * encoder.shape[0]} if "padding" in facts else {}
    return target.describe(len(keys), encoder.shape, made.bad, {**facts, **saved})


def encode_text(
    target: Target, encoder: TextEncoder, facts: dict[str, Any], keys: list[str], captions: list[str], batch: int
) -> Embeddings:
    """Split captions into tokens ahead of the encoder, write behind it."""
    starts = range(0, len(keys), batch)
    with block_writer(target, text_schema(encoder.shape, facts)) as writer, Behind() as behind:
        made = Embeddings(writer, facts)
        with progress(f"text {target.path.stem}", len(keys), "captions") as bar:
            tokens = ahead(lambda start: encoder.read(captions[start : start + batch]), starts)
            for start, read in zip(starts, tokens, strict=True):
                embedded, lengths = encoder.embed(read)
                behind(made.write, keys[start : start + batch], embedded, lengths)
                bar.update(len(lengths))
    return made
