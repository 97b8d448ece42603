"""Attention, feed-forward and transformer blocks of MicroDiT (arXiv 2407.15811; DiT: arXiv 2212.09748)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.architecture.config import BlockShape, MicroDiTConfig, text_hidden
from pipeline.model.embeddings import KeysValues, Linear
from pipeline.model.experts import ExpertMLP


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """x [B, T, d], shift and scale [B, d]."""
    return x * (1 + scale[:, None]) + shift[:, None]


def plain_norm(x: Tensor, eps: float) -> Tensor:
    """LayerNorm without parameters over the full width, all heads together; keeps the type of x."""
    return F.layer_norm(x, x.shape[-1:], eps=eps).to(x.dtype)  # under autocast it comes out as float32


def attend(q: Tensor, k: Tensor, v: Tensor, head_dim: int, mask: Tensor | None = None) -> Tensor:
    """q [B, T, w], k and v [B, S, w], mask [B, 1, 1, S] bool -> [B, T, w]."""
    heads = (t.unflatten(-1, (-1, head_dim)).transpose(1, 2) for t in (q, k, v))
    return F.scaled_dot_product_attention(*heads, attn_mask=mask).transpose(1, 2).flatten(2)


class SelfAttention(nn.Module):
    """[B, T, d] -> [B, T, d] through heads that are `width` wide together."""

    def __init__(self, dim: int, width: int, head_dim: int, eps: float) -> None:
        super().__init__()
        self.head_dim, self.eps = head_dim, eps
        self.qkv = Linear(dim, 3 * width, bias=False)
        self.proj = Linear(width, dim, bias=False)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        return self.proj(attend(plain_norm(q, self.eps), plain_norm(k, self.eps), v, self.head_dim, mask))


class CrossAttention(nn.Module):
    """x [B, T, d], text [B, L, d] or its keys and values -> [B, T, d]."""

    def __init__(self, dim: int, head_dim: int, eps: float) -> None:
        super().__init__()
        self.head_dim, self.eps = head_dim, eps
        self.q_linear = Linear(dim, dim, bias=False)
        self.kv_linear = Linear(dim, 2 * dim, bias=False)
        self.proj = Linear(dim, dim, bias=False)

    def keys_values(self, text: Tensor) -> KeysValues:
        k, v = self.kv_linear(text).chunk(2, dim=-1)
        return KeysValues(plain_norm(k, self.eps), v)

    def forward(self, x: Tensor, text: Tensor | KeysValues, mask: Tensor | None = None) -> Tensor:
        keys, values = text if isinstance(text, KeysValues) else self.keys_values(text)
        return self.proj(attend(plain_norm(self.q_linear(x), self.eps), keys, values, self.head_dim, mask))


def joint_keys_values(attentions: list[CrossAttention], text: Tensor) -> list[KeysValues]:
    """Keys and values of text [B, L, d] for many cross-attentions, by one matmul with all their weights."""
    weights = torch.cat([attention.kv_linear.weight for attention in attentions])
    keys, values = F.linear(text, weights).unflatten(-1, (len(attentions), 2, -1)).unbind(dim=-2)
    keys = plain_norm(keys, attentions[0].eps)
    return [KeysValues(*pair) for pair in zip(keys.unbind(dim=-2), values.unbind(dim=-2), strict=True)]


class DenseMLP(nn.Module):
    """SwiGLU (arXiv 2002.05202): [..., d] -> [..., d]."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.w1 = Linear(dim, hidden, bias=False)
        self.w2 = Linear(dim, hidden, bias=False)
        self.w3 = Linear(hidden, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.w3(F.silu(self.w1(x)) * self.w2(x))


class TextBlock(nn.Module):
    """The one transformer block over text tokens: [B, L, D] -> [B, L, D]."""

    def __init__(self, config: MicroDiTConfig) -> None:
        super().__init__()
        dim, eps = config.dim, config.norm_eps
        self.norm1 = nn.LayerNorm(dim, eps, bias=False)
        self.attn = SelfAttention(dim, dim, config.head_dim, eps)
        self.norm2 = nn.LayerNorm(dim, eps, bias=False)
        self.mlp = DenseMLP(dim, text_hidden(config))

    def forward(self, text: Tensor, mask: Tensor | None = None) -> Tensor:
        text = text + self.attn(self.norm1(text), mask)
        return text + self.mlp(self.norm2(text))


def _feed_forward(shape: BlockShape, config: MicroDiTConfig) -> nn.Module:
    if shape.experts:
        return ExpertMLP(shape.dim, shape.hidden, shape.experts, config.expert_capacity)
    return DenseMLP(shape.dim, shape.hidden)


class DiTBlock(nn.Module):
    """tokens [B, T, d], condition [B, D], text [B, L, d] or its keys and values -> [B, T, d]."""

    def __init__(self, shape: BlockShape, config: MicroDiTConfig) -> None:
        super().__init__()
        dim, head_dim, eps = shape.dim, config.head_dim, config.norm_eps
        self.norm1 = nn.LayerNorm(dim, eps, bias=False)
        self.attn = SelfAttention(dim, shape.attention, head_dim, eps)
        self.cross_attn = CrossAttention(dim, head_dim, eps)
        self.norm2 = nn.LayerNorm(dim, eps, bias=False)
        self.norm3 = nn.LayerNorm(dim, eps, bias=False)
        self.mlp = _feed_forward(shape, config)
        self.adaLN_modulation = nn.Sequential(nn.GELU("tanh"), Linear(config.dim, 6 * dim))

    def forward(self, x: Tensor, condition: Tensor, text: Tensor | KeysValues, mask: Tensor | None = None) -> Tensor:
        shift1, scale1, gate1, shift3, scale3, gate3 = self.adaLN_modulation(condition).chunk(6, dim=-1)
        x = x + gate1[:, None] * self.attn(modulate(self.norm1(x), shift1, scale1))
        x = x + self.cross_attn(self.norm2(x), text, mask)
        return x + gate3[:, None] * self.mlp(modulate(self.norm3(x), shift3, scale3))


class FinalLayer(nn.Module):
    """tokens [B, T, D], condition [B, D] -> patches [B, T, p·p·C]."""

    def __init__(self, config: MicroDiTConfig) -> None:
        super().__init__()
        self.linear = Linear(config.dim, config.patch_channels)
        self.adaLN_modulation = nn.Sequential(nn.GELU("tanh"), Linear(config.dim, 2 * config.dim))
        self.norm_final = nn.LayerNorm(config.dim, config.norm_eps, bias=False)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        shift, scale = self.adaLN_modulation(condition).chunk(2, dim=-1)
        return self.linear(modulate(self.norm_final(x), shift, scale))
