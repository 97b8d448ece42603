"""Random numbers addressed by (seed, purpose, position), the same for any batch, rank or call order.

Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011): a counter is
scrambled by ten rounds into four 32-bit words. Here the counter holds a position in the sample stream
and the index of a block of four words, the key holds a hash of the seed and the purpose.
"""

import hashlib
import math

import torch
from torch import Tensor

MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
ROUNDS = 10
LOW = 0xFFFFFFFF  # the low 32 bits of an int64

Words = tuple[Tensor, Tensor, Tensor, Tensor]


def _multiply(x: Tensor, factor: int) -> tuple[Tensor, Tensor]:
    """The high and low 32 bits of x·factor; int64 wraps, and the mask takes off the copies of its sign."""
    product = x * factor
    return (product >> 32) & LOW, product & LOW


def philox(counter: Words, key: tuple[int, int]) -> Words:
    """Four counter words and two key words, 32 bits each -> four random words, as int64 tensors."""
    c0, c1, c2, c3 = counter
    for step in range(ROUNDS):
        k0, k1 = ((word + step * delta) & LOW for word, delta in zip(key, KEY_STEPS, strict=True))
        (high0, low0), (high1, low1) = _multiply(c0, MULTIPLIERS[0]), _multiply(c2, MULTIPLIERS[1])
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
    return c0, c1, c2, c3


@torch.compiler.assume_constant_result  # a hash cannot be traced, and need not be: it is a number
def stream_key(seed: int, purpose: str) -> tuple[int, int]:
    """The key of one stream: 64 bits of blake2b over the seed and the purpose."""
    digest = hashlib.blake2b(f"{seed}\0{purpose}".encode(), digest_size=8).digest()
    return int.from_bytes(digest[:4], "little"), int.from_bytes(digest[4:], "little")


def _words(seed: int, purpose: str, positions: Tensor, blocks: int) -> Tensor:
    """Random words [B, blocks, 4] as int64 from 0 to 2³² - 1."""
    assert positions.dtype == torch.int64 and positions.ndim == 1, "positions are int64 [B]"
    low, high, block = torch.broadcast_tensors(
        (positions & LOW)[:, None], ((positions >> 32) & LOW)[:, None], torch.arange(blocks, device=positions.device)[None]
    )
    return torch.stack(philox((low, high, block, torch.zeros_like(block)), stream_key(seed, purpose)), dim=-1)


def _uniforms(seed: int, purpose: str, positions: Tensor, blocks: int) -> Tensor:
    # Half a unit from either end, so that 0 and 1 never come out and a logarithm is always finite.
    return (_words(seed, purpose, positions, blocks).double() + 0.5) / 2.0**32


def uniforms(seed: int, purpose: str, positions: Tensor, count: int, device: torch.device | str | None = None) -> Tensor:
    """[B, count] float64 in (0, 1) for positions [B] int64; 32 random bits each.

    A smaller count gives the first columns of a larger one. `device` is where to work, by default
    where the positions are.
    """
    positions = positions.to(device)
    return _uniforms(seed, purpose, positions, math.ceil(count / 4)).flatten(1)[:, :count]


def normals(seed: int, purpose: str, positions: Tensor, count: int, device: torch.device | str | None = None) -> Tensor:
    """[B, count] float32 standard normals for positions [B] int64, at most 6.8 in size.

    Box and Muller's transform in float64: two uniforms make a radius and an angle, hence two normals.
    """
    positions = positions.to(device)
    u = _uniforms(seed, purpose, positions, math.ceil(count / 4))
    radius, angle = (-2 * u[..., 0::2].log()).sqrt(), 2 * math.pi * u[..., 1::2]
    pairs = torch.stack([radius * angle.cos(), radius * angle.sin()], dim=-1)
    return pairs.flatten(1)[:, :count].float()
