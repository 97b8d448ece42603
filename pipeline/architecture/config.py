"""The architecture of a MicroDiT as one frozen dataclass, and the presets (arXiv 2407.15811)."""

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields, replace
from itertools import chain
from typing import Any, Literal, get_args

MaskMode = Literal["deferred", "naive", "none"]
NOISE_FREQUENCIES = 256  # sinusoids of the noise level, each a cosine and a sine

COUNTS = (
    "input_size",
    "patch_size",
    "in_channels",
    "dim",
    "depth",
    "head_dim",
    "multiple_of",
    "caption_channels",
    "caption_length",
    "mixer_dim",
    "experts_every_n",
)
COUNTS_OR_NONE = ("mixer_depth", "num_experts")
PAIRS = ("qkv_ratio", "ffn_ratio")
SIZES = ("pos_interp_scale", "norm_eps", "mixer_qkv_ratio", "mixer_ffn_ratio", "expert_capacity")


@dataclass(frozen=True)
class MicroDiTConfig:
    """Every number of the architecture.

    A pair (first, last) is spread evenly over the depth of the backbone: the layer-wise scaling of
    arXiv 2407.15811, section 3.3. Sizes are latent pixels, channels or tokens.
    Raises ValueError with one line when the numbers do not fit together.
    """

    input_size: int = 32  # side of the latent, in latent pixels
    patch_size: int = 2
    in_channels: int = 4
    dim: int = 1024  # backbone width D
    depth: int = 28
    head_dim: int = 64
    multiple_of: int = 256  # FFN hidden widths are rounded up to it
    caption_channels: int = 1024  # text width Dt
    caption_length: int = 77  # text tokens L
    pos_interp_scale: float = 1.0  # positions are divided by it: 2.0 at twice the resolution
    norm_eps: float = 1e-6
    qkv_ratio: tuple[float, float] = (0.5, 1.0)
    ffn_ratio: tuple[float, float] = (0.5, 4.0)
    mixer_depth: int = 6  # 0 leaves the patch-mixer out
    mixer_dim: int = 768  # mixer width Dm
    mixer_qkv_ratio: float = 1.0
    mixer_ffn_ratio: float = 4.0
    num_experts: int = 8  # 0 makes every FFN dense
    expert_capacity: float = 2.0  # experts a token meets on average
    experts_every_n: int = 2
    mask_mode: MaskMode = "deferred"
    drop_text_padding: bool = False  # text tokens of zeros are no tokens; the official model attends to padding

    def __post_init__(self) -> None:
        for name in PAIRS:  # JSON has lists only
            object.__setattr__(self, name, tuple(getattr(self, name)))
        for message in chain(_bad_numbers(self), _bad_combinations(self)):
            raise ValueError(f"model: {message}")

    @property
    def tokens_a_side(self) -> int:
        return self.input_size // self.patch_size

    @property
    def num_tokens(self) -> int:
        """T, the tokens of one image before any is dropped."""
        return self.tokens_a_side**2

    @property
    def patch_channels(self) -> int:
        """Numbers in one patch: p·p·C."""
        return self.patch_size**2 * self.in_channels

    def to_dict(self) -> dict[str, Any]:
        """A dictionary that JSON can hold and `from_dict` reads back to an equal config."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "MicroDiTConfig":
        """Raises ValueError naming a key that no config has; keys left out take their defaults."""
        known = {field.name for field in fields(cls)}
        unknown = sorted(set(values) - known)
        if unknown:
            raise ValueError(f"model: unknown key {unknown[0]!r}; known keys: {', '.join(sorted(known))}")
        return cls(**values)


def _bad_numbers(config: MicroDiTConfig) -> Iterator[str]:
    """One line for each number that is wrong by itself."""
    for names, least in ((COUNTS, 1), (COUNTS_OR_NONE, 0)):
        for name in names:
            value = getattr(config, name)
            if not isinstance(value, int) or value < least:
                yield f"{name} is {value!r}; give a whole number of at least {least}"
    for name in PAIRS:
        value = getattr(config, name)
        if len(value) != 2 or not min(value) > 0:
            yield f"{name} is {value}; give two numbers above 0, for the first and the last block"
    for name in SIZES:
        if not getattr(config, name) > 0:
            yield f"{name} is {getattr(config, name)}; give a number above 0"
    if config.mask_mode not in get_args(MaskMode):
        yield f"mask_mode is {config.mask_mode!r}; give one of {', '.join(get_args(MaskMode))}"


def _bad_combinations(config: MicroDiTConfig) -> Iterator[str]:
    """One line for each pair of numbers that do not fit together; they are right one by one."""
    for name, divisor in (("input_size", "patch_size"), ("dim", "head_dim"), ("mixer_dim", "head_dim")):
        value, by = getattr(config, name), getattr(config, divisor)
        if value % by and not (name == "mixer_dim" and config.mixer_depth == 0):
            yield f"{name} {value} is not a multiple of {divisor} {by}; change either"
    if config.dim % 4:
        yield f"dim {config.dim} is not a multiple of 4, as the sin-cos positions need; change it"
    if config.expert_capacity > config.num_experts > 0:
        yield (f"expert_capacity is {config.expert_capacity}; give a number of at most num_experts ({config.num_experts})")
    if config.mask_mode == "naive" and config.mixer_depth > 0:
        yield (
            f"mask_mode naive drops tokens before any mixer, but mixer_depth is {config.mixer_depth}; set it to 0 or use deferred"
        )
    if config.mask_mode == "deferred" and config.mixer_depth == 0:
        yield ("mask_mode deferred drops tokens after the mixer, but mixer_depth is 0; set it to at least 1 or use naive")


def round_up(value: float, multiple: int) -> int:
    """The smallest multiple of `multiple` that is not below `value`, forgiving a float's last bits."""
    return math.ceil(value / multiple - 1e-9) * multiple


def attention_width(dim: int, ratio: float, head_dim: int) -> int:
    """Width of a self-attention: dim·ratio up to a multiple of two heads, dim itself at ratio 1."""
    return dim if ratio == 1 else round_up(dim * ratio, 2 * head_dim)


def dense_hidden(dim: int, ratio: float, multiple_of: int) -> int:
    """Hidden width of a SwiGLU: two thirds of dim·ratio, so that three matrices cost what two would."""
    return round_up(int(2 * int(dim * ratio) / 3), multiple_of)


def text_hidden(config: MicroDiTConfig) -> int:
    """Hidden width of the text block's FFN, whose ratio is always 4."""
    return dense_hidden(config.dim, 4.0, config.multiple_of)


def expert_hidden(dim: int, ratio: float, multiple_of: int) -> int:
    """Hidden width of one expert's two-layer MLP."""
    return round_up(int(dim * ratio), multiple_of)


def kept_tokens(num_tokens: int, mask_ratio: float) -> int:
    """int(T·(1-r)). Raises ValueError for a ratio outside [0, 1) or one that keeps no token."""
    if not 0 <= mask_ratio < 1:
        raise ValueError(f"mask_ratio is {mask_ratio}; give a number from 0 to below 1")
    kept = int(num_tokens * (1 - mask_ratio))
    if kept < 1:
        raise ValueError(f"mask_ratio {mask_ratio} keeps none of {num_tokens} tokens; lower it")
    return kept


@dataclass(frozen=True)
class BlockShape:
    """Widths of one transformer block; experts is 0 where the FFN is dense."""

    dim: int
    attention: int
    hidden: int
    experts: int


def _block_shape(config: MicroDiTConfig, dim: int, qkv: float, ffn: float, expert: bool) -> BlockShape:
    hidden = expert_hidden if expert else dense_hidden
    return BlockShape(
        dim, attention_width(dim, qkv, config.head_dim), hidden(dim, ffn, config.multiple_of), config.num_experts if expert else 0
    )


def _has_experts(config: MicroDiTConfig, index: int) -> bool:
    return config.num_experts > 0 and (index + 1) % config.experts_every_n == 0


def _spread(ends: tuple[float, float], index: int, depth: int) -> float:
    first, last = ends
    return first if depth == 1 else first + (last - first) * (index / (depth - 1))


def backbone_shapes(config: MicroDiTConfig) -> list[BlockShape]:
    """One shape a backbone block; the last block never has experts."""
    return [
        _block_shape(
            config,
            config.dim,
            _spread(config.qkv_ratio, i, config.depth),
            _spread(config.ffn_ratio, i, config.depth),
            _has_experts(config, i) and i < config.depth - 1,
        )
        for i in range(config.depth)
    ]


def mixer_shapes(config: MicroDiTConfig) -> list[BlockShape]:
    """One shape a mixer block; the first block never has experts."""
    return [
        _block_shape(config, config.mixer_dim, config.mixer_qkv_ratio, config.mixer_ffn_ratio, _has_experts(config, i) and i > 0)
        for i in range(config.mixer_depth)
    ]


def at_resolution(config: MicroDiTConfig, input_size: int) -> MicroDiTConfig:
    """The same model for latents of another side, its positions squeezed into the range it was trained on.

    From 32 to 64 latent pixels the scale doubles, so 32 tokens a side sit at 0, 1/2, 1 … 15.5.
    Weights carry over unchanged except for the table of positions: see `weights_at`.
    """
    scale = config.pos_interp_scale * input_size / config.input_size
    return replace(config, input_size=input_size, pos_interp_scale=scale)


PRESETS: dict[str, MicroDiTConfig] = {
    "small": MicroDiTConfig(
        input_size=4,
        patch_size=1,
        dim=96,
        depth=5,
        head_dim=16,
        multiple_of=16,
        caption_channels=64,
        caption_length=24,
        mixer_depth=2,
        mixer_dim=64,
        num_experts=4,
    ),
    "tiny2": MicroDiTConfig(dim=512, depth=16, head_dim=32, mixer_depth=4, mixer_dim=512),
    "xl2": MicroDiTConfig(),
}
