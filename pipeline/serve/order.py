"""What to draw, from the fields of a form."""

from dataclasses import dataclass

from pipeline.errors import UserError

MAX_PROMPT = 1000  # characters; text encoders read some hundreds
MAX_STEPS, MAX_GUIDANCE, MAX_PICTURES = 200, 20.0, 16
MAX_SEED = 2**31 - 1


@dataclass(frozen=True)
class Order:
    """`count` pictures of a prompt, numbers 0 … count - 1 of the seed's noise."""

    prompt: str
    seed: int
    steps: int
    guidance: float
    count: int

    @classmethod
    def of(cls, prompt: str, seed: float | None, steps: float | None, guidance: float | None, count: float | None) -> "Order":
        """Fields can be empty (None). Raises: UserError about the first one that is wrong."""
        prompt = prompt.strip()
        if not prompt:
            raise UserError("The prompt is empty: say what to draw.")
        if len(prompt) > MAX_PROMPT:
            raise UserError(f"The prompt has {len(prompt):,} characters: write at most {MAX_PROMPT:,}.")
        return cls(
            prompt,
            _whole("The seed", seed, 0, MAX_SEED),
            _whole("Steps", steps, 2, MAX_STEPS),  # Heun's method needs two
            _number("Guidance", guidance, 0, MAX_GUIDANCE),
            _whole("Pictures", count, 1, MAX_PICTURES),
        )


def _number(name: str, value: float | None, least: float, most: float) -> float:
    if value is None or not least <= value <= most:
        raise UserError(f"{name} must be a number from {least:.10g} to {most:.10g}.")
    return float(value)


def _whole(name: str, value: float | None, least: int, most: int) -> int:
    if value is None or not least <= value <= most or value != int(value):
        raise UserError(f"{name} must be a whole number from {least} to {most}.")
    return int(value)
