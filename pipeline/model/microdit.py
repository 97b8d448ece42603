"""MicroDiT: a diffusion transformer trained on a quarter of its tokens (arXiv 2407.15811).

A light patch-mixer looks at all tokens, then a backbone works on those kept. Attribute names are those
of the official code, so that state dictionaries pass between the two unchanged.
"""

import torch
from torch import Tensor, nn

from pipeline.architecture.config import MicroDiTConfig, backbone_shapes, mixer_shapes
from pipeline.model.blocks import DiTBlock, FinalLayer, TextBlock, joint_keys_values
from pipeline.model.embeddings import (
    KeysValues,
    Linear,
    NoiseEmbedding,
    PatchEmbedding,
    ProjectionMLP,
    TextEncoding,
    sincos_positions,
    text_mask,
)
from pipeline.model.init import init_weights
from pipeline.model.masking import put_tokens, take_tokens, unpatchify


def _norm_linear(dim_in: int, dim_out: int, eps: float) -> nn.Sequential:
    return nn.Sequential(nn.LayerNorm(dim_in, eps, bias=False), Linear(dim_in, dim_out, bias=False))


class MicroDiT(nn.Module):
    """The network F of the EDM preconditioning; its weights follow from `seed` alone.

    On the meta device the weights are left without values: see `MicroDiT.from_state`.
    """

    def __init__(self, config: MicroDiTConfig, seed: int = 0) -> None:
        super().__init__()
        self.config = config
        self.joint_text = False  # whether `forward` projects the text for all blocks at once, instead of each block
        self._positions: dict[tuple[int, int, torch.device, torch.dtype], Tensor] = {}  # of grids that are no square
        dim, eps = config.dim, config.norm_eps
        self.register_buffer("pos_embed", torch.empty(1, config.num_tokens, dim))
        self.register_buffer("mask_token", torch.zeros(1, 1, config.patch_channels))
        self.x_embedder = PatchEmbedding(config.patch_size, config.in_channels, dim)
        self.t_embedder = NoiseEmbedding(dim)
        self.y_embedder = nn.ModuleDict({"y_proj": ProjectionMLP(config.caption_channels, dim, eps)})
        self.y_emb_preprocess = TextBlock(config)
        self.pooled_y_emb_process = ProjectionMLP(dim, dim, eps)
        self._add_mixer()
        self.blocks = nn.ModuleList(DiTBlock(shape, config) for shape in backbone_shapes(config))
        self.final_layer = FinalLayer(config)
        if not self.pos_embed.is_meta:
            self.init_weights(seed)

    def _add_mixer(self) -> None:
        config = self.config
        dim, mixer_dim, eps = config.dim, config.mixer_dim, config.norm_eps
        self.patch_mixer = nn.ModuleList(DiTBlock(shape, config) for shape in mixer_shapes(config))
        self.mixer_is_mapped = config.mixer_depth > 0 and mixer_dim != dim
        if self.mixer_is_mapped:
            self.patch_mixer_map_xin = _norm_linear(dim, mixer_dim, eps)
            self.patch_mixer_map_xout = _norm_linear(mixer_dim, dim, eps)
            self.patch_mixer_map_y = _norm_linear(dim, mixer_dim, eps)

    @classmethod
    def from_state(cls, config: MicroDiTConfig, state: dict[str, Tensor]) -> "MicroDiT":
        """A model that holds the tensors of `state` themselves: no copy, no initial weights drawn."""
        with torch.device("meta"):
            model = cls(config)
        model.load_state_dict(state, assign=True)
        return model

    @torch.no_grad()
    def init_weights(self, seed: int) -> None:
        """Start again from `seed`; the global random state is neither read nor moved."""
        self.pos_embed.copy_(position_table(self.config))
        self.mask_token.zero_()
        init_weights(self, self.config, seed)

    @property
    def num_tokens(self) -> int:
        """T, the tokens of one image before any is dropped."""
        return self.config.num_tokens

    def encode_text(self, text: Tensor, keys_values: bool = True) -> TextEncoding:
        """Frozen encoder's output [B, L, Dt] or [B, 1, L, Dt], of any float type -> what the blocks read.

        With `keys_values` the blocks need no projection of the text any more, however often they are called.
        """
        text = text.reshape(text.shape[0], *text.shape[-2:]).to(self.pos_embed.dtype)  # stored as float16
        mask = text_mask(text) if self.config.drop_text_padding else None
        tokens = self.y_emb_preprocess(self.y_embedder["y_proj"](text), mask)
        mixer_tokens = self.patch_mixer_map_y(tokens) if self.mixer_is_mapped else tokens
        blocks = _for_blocks(self.blocks, tokens, keys_values)
        pooled = self.pooled_y_emb_process(_mean(tokens, mask))
        return TextEncoding(_for_blocks(self.patch_mixer, mixer_tokens, keys_values), blocks, pooled, mask)

    def mix(self, tokens: Tensor, condition: Tensor, text: TextEncoding, ids_keep: Tensor | None) -> Tensor:
        """All tokens [B, T, D] through the mixer, then those kept: [B, K, D]."""
        if self.mixer_is_mapped:
            tokens = self.patch_mixer_map_xin(tokens)
        for block, block_text in zip(self.patch_mixer, text.mixer, strict=True):
            tokens = block(tokens, condition, block_text, text.mask)
        if ids_keep is not None:
            tokens = take_tokens(tokens, ids_keep)
        return self.patch_mixer_map_xout(tokens) if self.mixer_is_mapped else tokens

    def forward(self, x: Tensor, c_noise: Tensor, text: Tensor | TextEncoding, ids_keep: Tensor | None = None) -> Tensor:
        """x [B, C, H, W], c_noise [B], text, ids_keep [B, K] int64 -> [B, C, H, W], zeros where dropped.

        H and W are those of the config's square, or any others in whole patches.
        `text` is the frozen encoder's output or, to encode it once for many calls, `encode_text` of it.
        Without ids_keep nothing is dropped. Raises ValueError for ids_keep when mask_mode is "none".
        """
        if ids_keep is not None and self.config.mask_mode == "none":
            raise ValueError(
                "model: mask_mode is none, so no tokens can be dropped; set the mask ratio to 0 or mask_mode to deferred"
            )
        encoded = text if isinstance(text, TextEncoding) else self.encode_text(text, keys_values=self.joint_text)
        condition = self.t_embedder(c_noise) + encoded.pooled
        # With no mixer (naive masking) the tokens are dropped here straight after their embedding.
        rows, columns = (side // self.config.patch_size for side in x.shape[-2:])
        tokens = self.mix(self.x_embedder(x) + self.positions(rows, columns), condition, encoded, ids_keep)
        for block, block_text in zip(self.blocks, encoded.blocks, strict=True):
            tokens = block(tokens, condition, block_text, encoded.mask)
        patches = self.final_layer(tokens, condition).float()
        if ids_keep is not None:
            patches = put_tokens(patches, ids_keep, rows * columns)
        return unpatchify(patches, self.config.patch_size, rows)

    def positions(self, rows: int, columns: int) -> Tensor:
        """[1, T, D] of a grid of tokens: the buffer if it is the config's square, else a table made once."""
        if rows == columns == self.config.tokens_a_side:
            return self.pos_embed
        key = rows, columns, self.pos_embed.device, self.pos_embed.dtype
        if key not in self._positions:
            self._positions[key] = position_table(self.config, rows, columns).to(self.pos_embed)
        return self._positions[key]


def _for_blocks(blocks: nn.ModuleList, text: Tensor, keys_values: bool) -> list[Tensor | KeysValues]:
    """The text as each of the blocks takes it."""
    if keys_values and len(blocks):
        return joint_keys_values([block.cross_attn for block in blocks], text)
    return [text] * len(blocks)


def _mean(tokens: Tensor, mask: Tensor | None) -> Tensor:
    """tokens [B, L, D] -> [B, D], over those that the mask [B, 1, 1, L] leaves."""
    if mask is None:
        return tokens.mean(dim=1)
    real = mask[:, 0, 0, :, None]
    return tokens.masked_fill(~real, 0).sum(dim=1) / real.sum(dim=1)


def position_table(config: MicroDiTConfig, rows: int | None = None, columns: int | None = None) -> Tensor:
    """The `pos_embed` buffer [1, T, D] of that configuration, on the CPU, or the table of another grid of tokens.

    All grids have one centre and one distance between tokens (as SD3's, arXiv 2403.03206, section 5.3.2).
    """
    side, scale = config.tokens_a_side, config.pos_interp_scale
    return sincos_positions(config.dim, side, scale, rows or side, columns or side)[None]


def weights_at(config: MicroDiTConfig, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """`state` of the same model at another resolution, with the positions that `config` asks for."""
    return {**state, "pos_embed": position_table(config).to(state["pos_embed"])}


def state_layout(config: MicroDiTConfig) -> dict[str, tuple[int, ...]]:
    """Name and shape of every parameter and buffer, without making any of them."""
    with torch.device("meta"):
        model = MicroDiT(config)
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def parameter_count(config: MicroDiTConfig) -> int:
    """Trainable numbers; buffers are not counted."""
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in MicroDiT(config).parameters())
