"""How many images go through the network at once: as many as fit, in equal parts of what a process has to do."""

import os
from collections.abc import Callable, Iterator

import torch

from pipeline.architecture.config import text_hidden
from pipeline.model import BlockShape, MicroDiTConfig, backbone_shapes, kept_tokens, mixer_shapes

ESTIMATED_SHARE = 0.25  # of the memory goes to activations where their size is not tried but estimated
HOPELESS = 4  # times the memory by the estimate are not tried: half precision needs half of it, and estimates err


def activation_bytes(config: MicroDiTConfig, mask_ratio: float) -> int:
    """Roughly what the backward pass of one image keeps, in float32: inputs and outputs of every matmul, norm and
    activation, without the attention weights, which fused attention works out again."""
    kept, tokens, text = kept_tokens(config.num_tokens, mask_ratio), config.num_tokens, config.caption_length
    mixer = sum(_floats(shape, tokens, text, config) for shape in mixer_shapes(config))
    backbone = sum(_floats(shape, kept, text, config) for shape in backbone_shapes(config))
    return 4 * (mixer + backbone + _floats(BlockShape(config.dim, config.dim, text_hidden(config), 0), text, 0, config))


def _floats(shape: BlockShape, tokens: int, text: int, config: MicroDiTConfig) -> int:
    wide = 3 * shape.hidden * config.expert_capacity if shape.experts else 4 * shape.hidden
    return int(tokens * (16 * shape.dim + 5 * shape.attention + wide) + 4 * text * shape.dim)


def divisors_downwards(share: int) -> Iterator[int]:
    """Sizes that cut `share` into equal parts, largest first: compiled code knows one size."""
    return (size for size in range(share, 0, -1) if share % size == 0)


def fitting(
    share: int,
    config: MicroDiTConfig,
    mask_ratio: float,
    device: torch.device,
    attempt: Callable[[int], None] | None = None,
    agree: Callable[[int], int] = lambda code: code,
) -> int:
    """The largest divisor of `share` images that fits.

    Found by trying where `attempt(size)` runs the network on a GPU; `agree` gives the largest of the processes' codes,
    so that all of them make the same attempts. Without `attempt` by an estimate, which is the same every time: on a CPU,
    and for a sharded model, whose other processes would wait for ever in a collective that one left out of memory.
    Raises ValueError if not even one image fits.
    """
    memory, image = memory_bytes(device), activation_bytes(config, mask_ratio)
    if attempt is None:
        most = max(1, int(ESTIMATED_SHARE * memory / image))
        return next(size for size in divisors_downwards(share) if size <= most)
    hopeless = max(1, HOPELESS * agree(memory) // image)
    for size in divisors_downwards(share):
        if size <= hopeless and not agree(_runs_out(attempt, size)):
            return size
    raise ValueError(f"not even one image of {config.input_size}² latents fits into the {memory / 1e9:.0f} GB of {device}")


def memory_bytes(device: torch.device) -> int:
    """All the memory of the device: a GPU's own, else the machine's."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _runs_out(attempt: Callable[[int], None], size: int) -> bool:
    try:
        attempt(size)
        return False
    except torch.OutOfMemoryError:
        pass  # as long as the error is handled its traceback keeps the tensors of the attempt
    torch.cuda.empty_cache()
    return True
