"""How the words of a caption are chosen, and where one that became too long is cut."""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import LogitsProcessor

SENTENCE_END = re.compile(r"""[.!?…]["'”’)\]]*(?=\s|$)|[。！？]["'”’」』）]*""")


@dataclass(frozen=True)
class Decoding:
    """`temperature` 0 takes the likeliest word; above it words are drawn from the likeliest that together have the
    probability `top_p` (nucleus sampling, Holtzman et al., arXiv 1904.09751). `max_tokens` is the length at most."""

    max_tokens: int = 96
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0


class Words(LogitsProcessor):
    """Chooses the words of a batch, one row a caption, and counts them.

    A word is drawn with one number that is a hash of the seed, the row's name and the word's place, so that a caption is
    the same in any batch, order or part of a run. All other words are ruled out, and greedy decoding takes the one left.
    """

    def __init__(self, decoding: Decoding, names: Sequence[str]) -> None:
        self.count = 0
        self._decoding = decoding
        self._names = names

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Scores [B, V] of the next word, after the model's own rules, to scores in which the chosen word is the best."""
        place, self.count = self.count, self.count + 1
        if self._decoding.temperature == 0:
            return scores
        numbers = [uniform(self._decoding.seed, name, place) for name in self._names]
        chosen = draw(scores, self._decoding.temperature, self._decoding.top_p, numbers)
        return torch.full_like(scores, -torch.inf).scatter(1, chosen, 0.0)


def uniform(seed: int, name: str, place: int) -> float:
    """A number in (0, 1): 53 bits of blake2b, half a unit from either end."""
    hashed = hashlib.blake2b(f"{seed}\0{place}\0{name}".encode(), digest_size=8).digest()
    return ((int.from_bytes(hashed, "little") >> 11) + 0.5) / 2**53


def draw(scores: Tensor, temperature: float, top_p: float, numbers: Sequence[float]) -> Tensor:
    """Scores [B, V] and a number in (0, 1) a row to words [B, 1], by the inverse of the cumulated probabilities.

    They are cumulated in the vocabulary's order, not in that of size: the order of words that are nearly equally likely
    changes with rounding, and rounding with the batch.
    """
    precise = torch.float32 if scores.device.type == "mps" else torch.float64  # MPS has no float64
    likely = (scores.to(precise) / temperature).softmax(-1)
    if top_p < 1:
        ordered = likely.sort(-1, descending=True).values
        kept = ordered.cumsum(-1) - ordered < top_p
        least = ordered.masked_fill(~kept, torch.inf).amin(-1, keepdim=True)
        likely = likely.where(likely >= least, 0.0)
    cumulated = likely.cumsum(-1)
    wanted = torch.tensor(numbers, dtype=precise, device=scores.device)[:, None] * cumulated[:, -1:]
    return torch.searchsorted(cumulated, wanted, right=True).clamp(max=scores.shape[-1] - 1)


def whole_sentences(text: str) -> str:
    """Up to the last end of a sentence; all of it if there is none."""
    ends = [match.end() for match in SENTENCE_END.finditer(text)]
    return text[: ends[-1]] if ends else text
