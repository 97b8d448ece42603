"""The averaged weights of a finished stage, read from its folder."""

from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from pipeline.artifacts import read_json
from pipeline.diffusion import EDM
from pipeline.errors import UserError
from pipeline.model import MicroDiT, MicroDiTConfig, state_layout


@dataclass(frozen=True)
class Trained:
    """The averaged weights of a finished stage."""

    file: Path
    config: MicroDiTConfig
    state: dict[str, Tensor]
    edm: EDM
    frozen: dict[str, str]  # references of the `vae` and the `text_encoder` it was trained with
    images_seen_total: int
    fingerprint: str

    @classmethod
    def read(cls, folder: Path, weights: str = "ema") -> "Trained":
        """`weights` are "ema", those at the end, or "best", those of the lowest FID while the stage was trained.

        Raises: UserError naming the file that is missing or does not fit.
        """
        summary, file = read_json(folder / "summary.json"), folder / f"{weights}.safetensors"
        try:
            config, edm = MicroDiTConfig.from_dict(summary["model"]), EDM.from_dict(summary["diffusion"])
            frozen = {name: summary[name] for name in ("vae", "text_encoder")}
            seen, fingerprint = summary["images_seen_total"], summary["fingerprint"]
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{folder / 'summary.json'}: not a stage's summary ({error}); train that stage again") from error
        if weights == "best":
            best = summary.get("best_by_fid")
            if best is None:
                raise UserError(f"{folder}: was trained without scores; set evaluation.curve.images and run its training again")
            seen += best["images"] - summary["images_seen"]
        try:
            state = load_file(file)
        except (OSError, SafetensorError) as error:
            raise UserError(f"{file}: not readable ({error}); train that stage again") from error
        if config.depth + config.mixer_depth > len(state):  # a damaged number may be a very large one
            raise UserError(f"{file}: fewer tensors than the model in summary.json has blocks; train that stage again")
        shapes, layout = {name: tuple(tensor.shape) for name, tensor in state.items()}, _layout(config, folder)
        for name in sorted(name for name in shapes.keys() | layout if shapes.get(name) != layout.get(name)):
            raise UserError(
                f"{file}: {name} has shape {shapes.get(name)}, the model in summary.json {layout.get(name)}; "
                "train that stage again"
            )
        return cls(file, config, state, edm, frozen, seen, fingerprint)

    def network(self) -> MicroDiT:
        return MicroDiT.from_state(self.config, self.state)

    def untrained(self, seed: int) -> MicroDiT:
        """The same architecture as it was before any training."""
        return MicroDiT(self.config, seed=seed)


def _layout(config: MicroDiTConfig, folder: Path) -> dict[str, tuple[int, ...]]:
    """Shapes of a stage's weights. Raises: UserError for a model larger than any tensor can be."""
    try:
        return state_layout(config)
    except (RuntimeError, TypeError, ValueError, OverflowError) as error:
        what = str(error).partition("\n")[0]
        raise UserError(f"{folder / 'summary.json'}: its model cannot be built ({what}); train that stage again") from error
