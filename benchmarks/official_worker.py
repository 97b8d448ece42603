"""One of the two processes of compare_official.py: holds the official model or ours and answers its parent's requests.

Needs torch and safetensors; the official side also what the official network imports. Requests and answers are JSON lines.
"""

import argparse
import importlib
import json
import math
import os
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from pipeline.diffusion import EDM, normals, uniforms
from pipeline.engine.compiled import compile_blocks
from pipeline.engine.memory import keep_freed_blocks
from pipeline.engine.peak import large_matmul
from pipeline.model import PRESETS, MicroDiT, MicroDiTConfig, at_resolution, keep_ids

OFFICIAL_NAMES = {"tiny2": "MicroDiT_Tiny_2", "xl2": "MicroDiT_XL_2"}
PACKAGES = {"open_clip": "open_clip_torch"}  # where a module's package has another name
LEARNING_RATE, WEIGHT_DECAY, CLIP_NORM = 2.4e-4, 0.1, 0.25  # the recipe's first stage


@dataclass(frozen=True)
class Case:
    """What one line of the table compares."""

    arch: str
    px: int
    mask: float
    images: int
    work: str  # "step", or "backward" where the optimiser's state does not fit
    device: str
    precision: str
    compiled: bool
    seed: int = 0

    @property
    def config(self) -> MicroDiTConfig:
        return at_resolution(PRESETS[self.arch], self.px // 8)


# ---- Both workers: weights, batch and step


class Inputs(NamedTuple):
    """One batch, the same for both sides: all of it follows from the case."""

    latents: Tensor  # [B, C, H, W]
    text: Tensor  # [B, L, Dt]
    normal: Tensor  # [B]
    noise: Tensor  # [B, C, H, W]
    ids_keep: Tensor | None  # [B, K], None without a mask


def make_inputs(case: Case, mask: float) -> Inputs:
    config, positions = case.config, torch.arange(case.images)

    def draw(purpose: str, *shape: int) -> Tensor:
        return normals(case.seed, purpose, positions, math.prod(shape)).view(-1, *shape).to(case.device)

    image = (config.in_channels, config.input_size, config.input_size)
    text = draw("text", config.caption_length, config.caption_channels)
    scores = uniforms(case.seed, "mask", positions, config.num_tokens)
    ids = keep_ids(scores, mask).to(case.device) if mask else None
    return Inputs(0.9 * draw("latents", *image), text, draw("sigma", 1)[:, 0], draw("noise", *image), ids)


def save_weights(case: Case, path: Path) -> None:
    """Initial weights of the seed; what starts at zero gets small values, or every output would be zero."""
    state = MicroDiT(case.config, case.seed).state_dict()
    generator = torch.Generator().manual_seed(case.seed)
    for name, tensor in state.items():
        if name != "mask_token" and not tensor.any():
            tensor.normal_(0, 0.02, generator=generator)
    save_file(state, path)


def load_weights(path: Path) -> dict[str, Tensor]:
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118


def autocast(case: Case, precision: str) -> torch.autocast:
    return torch.autocast(case.device, torch.bfloat16, enabled=precision == "bfloat16")


def loss_of(case: Case, net: nn.Module, inputs: Inputs, precision: str) -> Tensor:
    with autocast(case, precision):
        return EDM().loss(net, *inputs[:4], case.config.patch_size, inputs.ids_keep).mean


def stepper(case: Case, net: nn.Module, loss: Callable[[], Tensor], optimizer: torch.optim.Optimizer) -> Callable[[], Tensor]:
    """One step as a function: forward, backward and, unless the work is only that, clipping and the optimiser."""

    def step() -> Tensor:
        value = loss()
        value.backward()
        if case.work == "step":
            torch.nn.utils.clip_grad_norm_(net.parameters(), CLIP_NORM)
            optimizer.step()
        optimizer.zero_grad()
        return value.detach()

    return step


# ---- Ours


def our_network(case: Case, state: dict[str, Tensor]) -> nn.Module:
    return MicroDiT.from_state(case.config, state).to(case.device)


def our_step(case: Case, net: nn.Module, inputs: Inputs) -> Callable[[], Tensor]:
    """This project's training step on one fixed batch."""
    if case.compiled:
        compile_blocks(net)
    if case.device == "cpu":
        keep_freed_blocks()
    optimizer = torch.optim.AdamW(net.parameters(), LEARNING_RATE, weight_decay=WEIGHT_DECAY, fused=True)
    return stepper(case, net, lambda: loss_of(case, net, inputs, case.precision), optimizer)


# ---- The official model


def import_official(checkout: Path) -> ModuleType:
    """The module of the official networks. Raises ValueError naming the package that this interpreter lacks."""
    sys.path.insert(0, str(checkout))
    try:
        return importlib.import_module("micro_diffusion.models.dit")
    except ImportError as error:
        name = (error.name or "").split(".")[0]
        package = PACKAGES.get(name, name)
        raise ValueError(
            f"{checkout}: {error}, which the official network imports; run {sys.executable} -m pip install {package}, "
            "or name another interpreter with --official-python"
        ) from error


def mask_of(ids_keep: Tensor, num_tokens: int) -> dict[str, Tensor]:
    """ids_keep [B, K] ascending in the form the official network takes: mask [B, T] with 1 = dropped, and the orders."""
    mask = torch.ones(len(ids_keep), num_tokens, device=ids_keep.device).scatter(1, ids_keep, 0.0)
    kept_first = mask.argsort(dim=1, stable=True)
    return {"mask": mask, "ids_keep": kept_first[:, : ids_keep.shape[1]], "ids_restore": kept_first.argsort(dim=1)}


class OfficialNetwork(nn.Module):
    """The official network behind the call of ours; `given` takes the place of the mask it would draw."""

    def __init__(self, dit: nn.Module, module: ModuleType) -> None:
        super().__init__()
        self.dit, self.given = dit, {}
        module.get_mask = lambda *_, **__: self.given

    def forward(self, x: Tensor, c_noise: Tensor, text: Tensor, ids_keep: Tensor | None = None) -> Tensor:
        ratio = 0.0 if ids_keep is None else 0.5  # any ratio above 0: it only says that there is a mask
        return self.dit(x, c_noise, text[:, None], mask_ratio=ratio)["sample"]


class LowPrecisionLayerNorm(nn.LayerNorm):
    """A LayerNorm in autocast's type: the official configuration asks its trainer for `low_precision_layernorm`."""

    def forward(self, x: Tensor) -> Tensor:
        kind = x.device.type
        if not torch.is_autocast_enabled(kind):
            return super().forward(x)
        dtype = torch.get_autocast_dtype(kind)
        with torch.autocast(kind, enabled=False):
            weight = None if self.weight is None else self.weight.to(dtype)
            return F.layer_norm(x.to(dtype), self.normalized_shape, weight, None, self.eps)


def official_network(case: Case, state: dict[str, Tensor], checkout: Path) -> nn.Module:
    module = import_official(checkout)
    if not hasattr(module, "get_mask"):
        raise ValueError(f"{checkout}: its network has no get_mask; check out the main branch of SonyResearch/micro_diffusion")
    with torch.device("meta"):
        dit = getattr(module, OFFICIAL_NAMES[case.arch])(input_size=case.px // 8, pos_interp_scale=case.px / 256)
    dit.load_state_dict(state, assign=True)
    for layer in dit.modules():
        if isinstance(layer, nn.LayerNorm):
            layer.__class__ = LowPrecisionLayerNorm
    return OfficialNetwork(dit.to(case.device), module)


def official_step(case: Case, net: nn.Module, inputs: Inputs) -> Callable[[], Tensor]:
    """The official training step: `torch.compile` around network and loss, AdamW without options."""

    def loss() -> Tensor:
        return loss_of(case, net, inputs, case.precision)

    optimizer = torch.optim.AdamW(net.parameters(), LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    return stepper(case, net, torch.compile(loss) if case.compiled else loss, optimizer)


# ---- Answering


class Worker:
    """One side of the comparison; every public method is a request."""

    def __init__(self, role: str, checkout: Path) -> None:
        self.role, self.checkout = role, checkout

    def describe(self, device: str) -> dict[str, Any]:
        """What runs here. Raises ValueError for a device that is not there."""
        found = "cuda" if torch.cuda.is_available() else "cpu"
        if device not in ("auto", "cpu", found):
            raise ValueError(f"--device {device} is not there, found {found}; use auto")
        device = found if device == "auto" else device
        if self.role == "official":
            import_official(self.checkout)
        name = torch.cuda.get_device_name() if device == "cuda" else cpu_name()
        room = torch.cuda.mem_get_info()[0] if device == "cuda" else None
        return {"torch": torch.__version__, "device": device, "name": name, "threads": torch.get_num_threads(), "room": room}

    def weights(self, case: dict[str, Any], path: str) -> None:
        save_weights(Case(**case), Path(path))

    def load(self, case: dict[str, Any], path: str) -> None:
        """Let the last case go and take up another."""
        self.net = self.run = None
        self.case = case = Case(**case)
        state = load_weights(Path(path))
        ours = self.role == "ours"
        self.net = our_network(case, state) if ours else official_network(case, state, self.checkout)
        torch.backends.cudnn.allow_tf32 = False  # the patch embedding is a convolution, and the checks are float32's

    def _inputs(self, mask: float) -> Inputs:
        inputs = make_inputs(self.case, mask)
        if self.role == "official" and inputs.ids_keep is not None:
            self.net.given = mask_of(inputs.ids_keep, self.case.config.num_tokens)
        return inputs

    @torch.no_grad()
    def forward(self, mask: float, precision: str, path: str) -> None:
        """The network's output for the noisy batch, saved to `path`."""
        inputs = self._inputs(mask)
        with autocast(self.case, precision):
            output = self.net(inputs.latents + inputs.noise, inputs.normal / 4, inputs.text, inputs.ids_keep)
        save_file({"output": output.float().cpu().contiguous()}, path)

    def gradients(self) -> list[float]:
        """Loss and gradient norm of every parameter in float32, in the order of their names."""
        loss = loss_of(self.case, self.net, self._inputs(self.case.mask), "float32")
        loss.backward()
        names = {name.removeprefix("dit."): parameter.grad.norm().item() for name, parameter in self.net.named_parameters()}
        self.net.zero_grad()
        return [loss.item(), *(names[name] for name in sorted(names))]

    def error(self, ours: str, official: str) -> float:
        """||a - b|| / ||b|| of two saved outputs."""
        a, b = (load_weights(Path(path))["output"].double() for path in (ours, official))
        return ((a - b).norm() / b.norm()).item()

    def step(self) -> dict[str, float]:
        """One step: its seconds and its loss. The first compiles."""
        if self.run is None:
            torch.backends.cudnn.allow_tf32 = True
            make = our_step if self.role == "ours" else official_step
            self.run = make(self.case, self.net, self._inputs(self.case.mask))
        started = self._now()
        loss = self.run()
        return {"seconds": self._now() - started, "loss": loss.item()}

    def large_matmul(self) -> float:
        """FLOP/s of one, now."""
        return large_matmul(torch.device(self.case.device), getattr(torch, self.case.precision))

    def _now(self) -> float:
        if self.case.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    def serve(self) -> None:
        answers = os.fdopen(os.dup(1), "w", buffering=1)
        os.dup2(2, 1)  # what a library prints goes to stderr
        for line in sys.stdin:
            request = json.loads(line)
            try:
                answer = {"answer": getattr(self, request.pop("do"))(**request)}
            except torch.OutOfMemoryError:
                answer = {"error": f"{self.role}: out of GPU memory; lower --images or use --work backward"}
            except ValueError as error:
                answer = {"error": " ".join(str(error).split())}
            print(json.dumps(answer), file=answers)


def cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.split(": ", 1)[1] for line in lines if line.startswith("model name")), platform.processor() or "CPU")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("role", choices=("ours", "official"))
    parser.add_argument("checkout", type=Path)
    arguments = parser.parse_args()
    Worker(arguments.role, arguments.checkout).serve()
