import math

import pytest
import torch

from pipeline.frozen.captioners.words import Decoding, Words, draw, uniform, whole_sentences


def drawn(scores: list[float], temperature: float = 1.0, top_p: float = 1.0, count: int = 20_000) -> list[float]:
    """Shares of the words among draws with evenly spread numbers."""
    numbers = [(n + 0.5) / count for n in range(count)]
    words = draw(torch.tensor([scores]).expand(count, -1), temperature, top_p, numbers)
    return (torch.bincount(words[:, 0], minlength=len(scores)) / count).tolist()


def test_words_are_drawn_with_their_probabilities() -> None:
    scores = [math.log(p) for p in (0.1, 0.5, 0.15, 0.25)]
    assert drawn(scores) == pytest.approx([0.1, 0.5, 0.15, 0.25], abs=1e-3)
    cooler = torch.tensor(scores).div(0.5).softmax(0).tolist()
    assert drawn(scores, temperature=0.5) == pytest.approx(cooler, abs=1e-3)


@pytest.mark.parametrize(
    ("top_p", "expected"), [(0.4, [0, 1, 0, 0]), (0.6, [0, 2 / 3, 0, 1 / 3]), (0.8, [0, 5 / 9, 1 / 6, 5 / 18])]
)
def test_top_p_keeps_the_likeliest_that_reach_it(top_p: float, expected: list[float]) -> None:
    scores = [math.log(p) for p in (0.1, 0.5, 0.15, 0.25)]
    assert drawn(scores, top_p=top_p) == pytest.approx(expected, abs=1e-3)


def test_words_that_a_model_rules_out_are_never_drawn() -> None:
    assert drawn([-math.inf, 0.0, -math.inf])[1] == 1.0
    edges = draw(torch.tensor([[-math.inf, 0.0, -math.inf]]).expand(2, -1), 1.0, 1.0, [2.0**-54, 1 - 2.0**-53])
    assert edges.flatten().tolist() == [1, 1]


def test_draws_do_not_change_with_rounding() -> None:
    """Two words that are almost equally likely may swap their order of size, which changes no draw."""
    numbers = [(n + 0.5) / 100 for n in range(100)]
    scores = torch.tensor([[0.0, 1.0, 1.0 + 1e-6, -1.0]])
    swapped = torch.tensor([[0.0, 1.0 + 1e-6, 1.0, -1.0]])
    for top_p in (1.0, 0.9):
        one, other = (draw(values.expand(100, -1), 1.0, top_p, numbers) for values in (scores, swapped))
        assert torch.equal(one, other)


def test_numbers_are_uniform_and_differ_by_seed_name_and_place() -> None:
    names = [(seed, f"k{name}", place) for seed in range(5) for name in range(40) for place in range(50)]
    numbers = torch.tensor([uniform(*name) for name in names], dtype=torch.float64)
    assert len(numbers.unique()) == 10_000 and 0 < numbers.min() < 1e-3 and 1 - 1e-3 < numbers.max() < 1
    deciles = torch.histc(numbers, 10, 0, 1)
    assert ((deciles - 1000).abs() < 4 * math.sqrt(900)).all()
    assert uniform(0, "1", 11) != uniform(0, "11", 1) and uniform(1, "1", 1) == uniform(1, "1", 1)


def test_greedy_words_are_left_to_the_scores_and_counted() -> None:
    words, scores = Words(Decoding(), ["a", "b"]), torch.randn(2, 5)
    assert torch.equal(words(torch.zeros(2, 1), scores), scores) and words.count == 1


def test_a_drawn_word_is_the_only_one_left() -> None:
    words, scores = Words(Decoding(temperature=1.0, seed=3), ["a", "b"]), torch.zeros(2, 50)
    first, second = (words(torch.zeros(2, 1), scores) for _ in range(2))
    assert first.isfinite().sum(1).tolist() == [1, 1] and words.count == 2
    chosen = torch.stack([first.argmax(1), second.argmax(1)])
    assert len(chosen.unique()) > 2
    again = Words(Decoding(temperature=1.0, seed=3), ["b"])
    assert again(torch.zeros(1, 1), scores[:1]).argmax() == chosen[0, 1]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A dog. It runs over", "A dog."),
        ("A dog. It runs! On the", "A dog. It runs!"),
        ('A sign says "stop." Behind it', 'A sign says "stop."'),
        ("A dog runs over the", "A dog runs over the"),
        ("A tower of 3.5 metres", "A tower of 3.5 metres"),
        ("Whole.", "Whole."),
        ("一只狗。它在跑", "一只狗。"),
        ("", ""),
    ],
)
def test_a_text_is_cut_behind_its_last_sentence(text: str, expected: str) -> None:
    assert whole_sentences(text) == expected
