"""What a stage asks of the training step, as one frozen dataclass; sizes and places are counted in images."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Recipe:
    """The numbers of one stage. `name` and `seed` address all its random numbers."""

    name: str
    images: int  # seen in this stage, in all
    seed: int = 0
    batch_images: int = 2048
    mask_ratio: float = 0.0
    caption_dropout: float = 0.1
    learning_rate: float = 8e-5
    warmup_images: int = 0
    schedule: Literal["constant", "cosine"] = "constant"
    final_lr_ratio: float = 1.0
    weight_decay: float = 0.1
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    clip_norm: float = 0.25
    skip_norm_factor: float = 20.0
    ema_decay: float = 0.99975
    ema_start_images: int = 0
    posthoc_ema: tuple[float, ...] = ()  # relative widths of power-function averages
