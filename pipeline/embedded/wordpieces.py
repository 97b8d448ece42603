"""A byte-level CLIP tokenizer whose merges come from the captions of the scenes.

Every byte is in the base vocabulary, with and without the end-of-word mark, so any text in any script has a
spelling; the words of the captions are one token each.
"""

import itertools
from collections import Counter
from collections.abc import Iterable

from tokenizers.pre_tokenizers import ByteLevel
from transformers import CLIPTokenizer

from pipeline.embedded.scenes import WORDINGS, caption, draw_scene

END = "</w>"
BOS, EOS = "<|startoftext|>", "<|endoftext|>"


def build_tokenizer(max_length: int, seed: int = 0, captions: int = 4000) -> CLIPTokenizer:
    """A tokenizer for texts of at most `max_length` tokens, its merges learnt from `captions` training captions."""
    merges = learn_merges(_words(seed, captions))
    alphabet = sorted(ByteLevel.alphabet())
    pieces = [*alphabet, *(a + END for a in alphabet), *(a + b for a, b in merges), BOS, EOS]
    vocab = {piece: i for i, piece in enumerate(pieces)}
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=max_length)


def _words(seed: int, captions: int) -> Counter[str]:
    words: Counter[str] = Counter()
    for i in range(captions):
        text = caption(draw_scene(seed, "train", i, 0.5), i % len(WORDINGS))
        words.update(text.replace(",", " ,").split())
    return words


def learn_merges(words: Counter[str]) -> list[tuple[str, str]]:
    """Byte-pair merges, most frequent pair first, until every word (plain ASCII) is a single piece."""
    spelled = {word: [*word[:-1], word[-1] + END] for word in words}
    merges = []
    while pairs := _count_pairs(spelled, words):
        # The pair itself breaks ties, so that the result does not depend on the order of counting.
        best = max(pairs, key=lambda pair: (pairs[pair], pair))
        merges.append(best)
        spelled = {word: _merge(pieces, best) for word, pieces in spelled.items()}
    return merges


def _count_pairs(spelled: dict[str, list[str]], words: Counter[str]) -> Counter[tuple[str, str]]:
    pairs: Counter[tuple[str, str]] = Counter()
    for word, pieces in spelled.items():
        for pair in itertools.pairwise(pieces):
            pairs[pair] += words[word]
    return pairs


def _merge(pieces: Iterable[str], pair: tuple[str, str]) -> list[str]:
    merged: list[str] = []
    for piece in pieces:
        if merged and (merged[-1], piece) == pair:
            merged[-1] += piece
        else:
            merged.append(piece)
    return merged
