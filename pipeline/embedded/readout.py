"""A linear read-out of scene attributes from feature vectors: used in training CLIP and in measuring it.

For each position: which colour, shape and size stands there, or nothing; and the colour of the background.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F

from pipeline.embedded.scenes import BACKGROUNDS, COLOURS, POSITIONS, SHAPES, SIZES, Scene

# Choice 0 is "nothing stands here".
CHOICES = {"colour": tuple(COLOURS), "shape": SHAPES, "size": tuple(SIZES)}
IGNORE = -100


def targets_of(scenes: Sequence[Scene], sized: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
    """Class numbers: colour, shape, size [B, positions], background [B].

    Where `sized` [B] is false, the sizes of objects are unknown (IGNORE).
    """
    places, grounds = list(POSITIONS), list(BACKGROUNDS)
    targets = {key: torch.zeros(len(scenes), len(places), dtype=torch.long) for key in CHOICES}
    for row, scene in enumerate(scenes):
        for item in scene.objects:
            for key, names in CHOICES.items():
                targets[key][row, places.index(item.position)] = 1 + names.index(getattr(item, key))
    if sized is not None:
        hidden = (targets["size"] > 0) & ~sized[:, None]
        targets["size"] = targets["size"].masked_fill(hidden, IGNORE)
    targets["background"] = torch.tensor([grounds.index(scene.background) for scene in scenes])
    return targets


class ReadOut(torch.nn.Module):
    """One linear map from features [B, width] to the scores of all attributes."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.parts = {key: len(POSITIONS) * (1 + len(names)) for key, names in CHOICES.items()}
        self.parts["background"] = len(BACKGROUNDS)
        self.linear = torch.nn.Linear(width, sum(self.parts.values()))

    def forward(self, features: torch.Tensor) -> dict[str, torch.Tensor]:
        """Scores: colour, shape, size [B, classes, positions], background [B, classes]."""
        pieces = dict(zip(self.parts, self.linear(features).split(tuple(self.parts.values()), 1), strict=True))
        return {key: piece if key == "background" else piece.unflatten(1, (-1, len(POSITIONS))) for key, piece in pieces.items()}

    def loss(self, features: torch.Tensor, targets: dict[str, torch.Tensor]) -> torch.Tensor:
        """The sum of the cross-entropies of the four attributes."""
        scores = self(features)
        return sum(F.cross_entropy(scores[key], targets[key], ignore_index=IGNORE) for key in scores)

    @torch.no_grad()
    def accuracy(self, features: torch.Tensor, targets: dict[str, torch.Tensor]) -> dict[str, float]:
        """Share of right answers an attribute; colour, shape and size where an object stands, position everywhere.

        A position is right when the set of occupied places is.
        """
        guesses = {key: scores.argmax(1) for key, scores in self(features).items()}
        right = {"background": (guesses["background"] == targets["background"]).float().mean().item()}
        for key in CHOICES:
            stands = targets[key] > 0
            right[key] = (guesses[key] == targets[key])[stands].float().mean().item()
        placed = ((guesses["colour"] > 0) == (targets["colour"] > 0)).all(1)
        return {**right, "position": placed.float().mean().item()}


Targets = dict[str, torch.Tensor]


def fit_probe(
    features: torch.Tensor, targets: Targets, steps: int = 800, peak: float = 0.02
) -> Callable[[torch.Tensor, Targets], dict[str, float]]:
    """Fit a read-out to frozen features [B, width]; returns the function that measures it on others."""
    mean, std = features.mean(0), features.std(0) + 1e-6
    probe = ReadOut(features.shape[1])
    optimiser = torch.optim.Adam(probe.parameters(), lr=peak)
    for step in range(steps):
        optimiser.param_groups[0]["lr"] = peak * (1 - step / steps)
        optimiser.zero_grad()
        probe.loss((features - mean) / std, targets).backward()
        optimiser.step()
    return lambda others, answers: probe.accuracy((others - mean) / std, answers)
