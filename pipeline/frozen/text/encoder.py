"""The frozen text encoder: captions to the last hidden state after the final norm, whatever the family."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from pipeline.frozen.families import text_family
from pipeline.frozen.models import Place, locate
from pipeline.frozen.text.open_clip import load_open_clip
from pipeline.frozen.text.tower import Tokens, Tower
from pipeline.frozen.text.transformers import load_clip, load_decoder, load_siglip, load_t5

LOADERS: dict[str, Callable[[Place, torch.device, torch.dtype], Tower]] = {
    "clip": load_clip,
    "open_clip": load_open_clip,
    "siglip": load_siglip,
    "t5": load_t5,
    "decoder": load_decoder,
}


class TextEncoder:
    """`shape` is (L, Dt): tokens a caption and width of an embedding.

    `drop_padding`: embeddings of the padding are zeros, as they are read from a file that holds none of it. That is what
    a network takes whose configuration says `drop_text_padding`.
    """

    def __init__(self, tower: Tower, tokens: int, drop_padding: bool = False) -> None:
        self._tower = tower
        self._drop_padding = drop_padding
        self.shape: tuple[int, int] = (tokens, tower.width)

    def encode(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Captions to (tokens [B, L, Dt], lengths [B]): the last hidden state after the final norm, float32.

        Longer captions are cut, their end token kept if the family has one; shorter ones are padded on the right, and
        `lengths` counts what is before the padding. At the padding there is what the encoder gives there. Whether padding
        is masked inside of it is as in its training (see `text.transformers` and `text.open_clip`). But for SigLIP it
        changes no real token, so that a reader who wants none of it takes the first `lengths` tokens.
        """
        return self.embed(self.read(texts))

    def read(self, texts: Sequence[str]) -> Tokens:
        """The first half of `encode`, on the CPU; may run in another thread."""
        return self._tower.read(texts, self.shape[0])

    @torch.no_grad()
    def embed(self, tokens: Tokens) -> tuple[Tensor, Tensor]:
        """The second half of `encode`; `lengths` stay on the CPU."""
        hidden = self._tower.embed(tokens).float()
        if self._drop_padding:
            hidden = hidden * tokens.mask.to(hidden)[:, :, None]
        return hidden, tokens.mask.sum(1)


def load_text_encoder(
    ref: str, tokens: int | None, device: torch.device, drop_padding: bool = False, dtype: torch.dtype = torch.float32
) -> TextEncoder:
    """`tokens` null: as many as the model is made for. `drop_padding`: see `TextEncoder`. `dtype`: what to compute in.

    Raises: UserError if the reference leads to no text encoder that is known here, or to one that has fewer positions
    than `tokens`, or needs a number.
    """
    place = locate(ref)
    tower = LOADERS[text_family(place)](place, device, dtype)
    length = tokens or tower.natural
    if length is None:
        raise place.fault("takes captions of any length; models.text_tokens must say how many tokens to keep, such as 128")
    if tower.positions and not 2 <= length <= tower.positions:
        limit = f"between 2 and {tower.positions}"
        raise place.fault(f"has {tower.positions} positions; models.text_tokens must be {limit}, found {length}")
    return TextEncoder(tower, length, drop_padding)
