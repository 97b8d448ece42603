"""What the families of text encoders have in common: a model, its tokenizer, and how it is trained to see padding."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor


class Tokens(NamedTuple):
    """Captions as a model reads them. `ids` [B, n] int64; `mask` [B, L] int64 has ones at a caption's own tokens, which
    come first, and zeros at its padding. n is L, or more for a model that always reads all its positions."""

    ids: Tensor
    mask: Tensor


def padded(tokenizer: Any, texts: Sequence[str], length: int) -> Tokens:
    """With a tokenizer of transformers."""
    options = {"padding": "max_length", "padding_side": "right", "max_length": length, "truncation": True}
    batch = tokenizer(list(texts), **options, return_attention_mask=True, return_tensors="pt")
    return Tokens(batch.input_ids, batch.attention_mask)


class Tower(Protocol):
    """`positions`: tokens the model has positions for, None for any number. `natural`: how many it is made for, None if
    no number is better than another. `width` = Dt."""

    positions: int | None
    natural: int | None
    width: int

    def read(self, texts: Sequence[str], length: int) -> Tokens:
        """Captions to tokens on the CPU, `length` = L a caption: longer ones are cut, an end token kept."""

    def embed(self, tokens: Tokens) -> Tensor:
        """The last hidden state after the final norm [B, L, Dt], also at the padding."""


@dataclass(frozen=True)
class TransformersTower:
    """A model of transformers.

    `hides_padding`: the padding is masked in attention, and changes no real token. Without that the model sees it, as CLIP
    and SigLIP did in training; CLIP's attention is causal, so that there, too, it changes no real token.
    `reads_all`: the model reads as many tokens as it has positions, of which the first L are kept.
    """

    model: torch.nn.Module
    tokenizer: Any
    width: int
    positions: int | None
    natural: int | None
    hides_padding: bool = False
    reads_all: bool = False
    lower_case: bool = False

    def read(self, texts: Sequence[str], length: int) -> Tokens:
        ids, mask = padded(self.tokenizer, [text.lower() if self.lower_case else text for text in texts], length)
        if self.reads_all:
            ids = torch.nn.functional.pad(ids, (0, self.positions - length), value=self.tokenizer.pad_token_id)
        if self.hides_padding:
            mask[:, 0] = 1  # a caption without any token is one token of padding: attention needs something to attend to
        return Tokens(ids, mask)

    def embed(self, tokens: Tokens) -> Tensor:
        device = self.model.device
        hidden = {"attention_mask": tokens.mask.to(device)} if self.hides_padding else {}
        states = self.model(input_ids=tokens.ids.to(device), **hidden).last_hidden_state
        return states[:, : tokens.mask.shape[1]]
