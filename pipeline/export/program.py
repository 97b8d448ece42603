"""The network as a program of torch.export: a graph that runs where this program is not, and that other compilers take."""

from pathlib import Path

import torch
from torch import Tensor, nn

from pipeline.artifacts import atomic
from pipeline.errors import UserError
from pipeline.export.folder import load_model_folder
from pipeline.model import MicroDiT, MicroDiTConfig

BATCH = 2  # of the example: a batch of one would be taken for a constant


class Unmasked(nn.Module):
    """F(x, c_noise, text) over all tokens, as sampling calls it."""

    def __init__(self, network: MicroDiT) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, c_noise: Tensor, text: Tensor) -> Tensor:
        """x [B, C, H, W], c_noise [B], text [B, L, Dt] -> [B, C, H, W]."""
        return self.network(x, c_noise, text)


def run(model: Path, out: Path) -> None:
    """Write the network of a model folder as `out` (.pt2), in float32, for any batch at the trained resolution.

    `torch.export.load(out).module()(x, c_noise, text)` calls it. Raises: UserError if the folder is no model, or `out` does
    not end in .pt2 or cannot be written.
    """
    if out.suffix != ".pt2":
        raise UserError(f"--out {out}: programs of torch.export are written as .pt2; end it so")
    folder = load_model_folder(model)
    network = MicroDiT.from_state(folder.config, folder.state).float().eval()
    with atomic(out) as temporary:
        named = temporary.with_name(f"{temporary.name}.pt2")  # torch insists on the ending
        try:
            torch.export.save(export(network), named)
            named.replace(temporary)
        finally:
            named.unlink(missing_ok=True)


def export(network: MicroDiT) -> torch.export.ExportedProgram:
    """The graph of `Unmasked`, its batch left open."""
    dynamic = {name: {0: torch.export.Dim.DYNAMIC} for name in ("x", "c_noise", "text")}
    with torch.no_grad():
        return torch.export.export(Unmasked(network), example(network.config, BATCH), dynamic_shapes=dynamic)


def example(config: MicroDiTConfig, batch: int) -> tuple[Tensor, Tensor, Tensor]:
    """Inputs of the right shapes."""
    generator = torch.Generator().manual_seed(0)
    shapes = (
        (batch, config.in_channels, config.input_size, config.input_size),
        (batch,),
        (batch, config.caption_length, config.caption_channels),
    )
    x, c_noise, text = (torch.randn(shape, generator=generator) for shape in shapes)
    return x, c_noise, text
