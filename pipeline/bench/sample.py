"""`bench sample`: latents a second that a network of random weights draws, with guidance in one batch, as `evaluate` does.

The text is encoded once a batch; text encoder and autoencoder are not part of it. FLOPs are counted, 2 a multiply-add, for
the calls that were made.
"""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pipeline.bench.machine import facts, peak_memory_gb, pick_device, pick_precision
from pipeline.diffusion import EDM, SAMPLERS, sample
from pipeline.engine.compiled import compile_blocks, compiled_graphs
from pipeline.engine.peak import datasheet, large_matmul, seconds, wait
from pipeline.model import PRESETS, MicroDiT, TextEncoding, at_resolution, forward_flops, text_flops

LARGEST = {"cuda": 512, "cpu": 32}  # images of a batch that `auto` tries, at most
WORTHWHILE = 1.05  # a batch of twice the size must draw so many times faster


def main(arguments: Sequence[str]) -> int:
    """Measure and print JSON."""
    options = _parser().parse_args(arguments)
    device = pick_device(options.device)
    torch.backends.cuda.matmul.allow_tf32 = False
    json.dump({**facts("sample", arguments, device), **Bench(options, device).measure()}, sys.stdout, indent=1)
    print()
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m pipeline bench sample", description=__doc__.partition("\n")[0])
    parser.add_argument("--arch", choices=sorted(PRESETS), default="xl2")
    parser.add_argument("--px", type=int, default=512, help="resolution in pixels; 8 pixels are one of the latent")
    parser.add_argument("--sampler", choices=sorted(SAMPLERS), default="heun")
    parser.add_argument("--steps", type=int, default=30, help="sampling steps")
    parser.add_argument("--guidance", type=float, default=5.0, help="guidance scale; 1 is none, and half the work")
    parser.add_argument("--interval", type=float, nargs=2, help="noise levels, low and high, between which guidance acts")
    parser.add_argument("--batch", default="auto", help="images at a time, or auto: doubled while that is faster and fits")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--precision", choices=("auto", "float32", "bfloat16"), default="auto")
    parser.add_argument("--compile", choices=("auto", "on", "off"), default="auto", help="auto: on CUDA")
    return parser


class Bench:
    """A network and what it is to draw; counts its own calls."""

    def __init__(self, options: argparse.Namespace, device: torch.device) -> None:
        self.options, self.device = options, device
        self.config = at_resolution(PRESETS[options.arch], options.px // 8)
        self.precision = pick_precision(options.precision, device)
        self.model = MicroDiT(self.config).to(device).eval()
        self.compiled = options.compile == "on" or (options.compile == "auto" and device.type == "cuda")
        if self.compiled:
            compile_blocks(self.model)
        self.calls = self.rows = self.texts = 0

    def measure(self) -> dict[str, Any]:
        """Speed, FLOPs and memory of one batch, after another that warmed up."""
        options, graphs = self.options, compiled_graphs()
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        batch = self._fastest() if options.batch == "auto" else int(options.batch)
        self._draw(batch, 2)  # compiles
        self.calls = self.rows = self.texts = 0
        wait(self.device)
        started = time.perf_counter()
        self._draw(batch, options.steps)
        wait(self.device)
        spent, calls, rows, texts = time.perf_counter() - started, self.calls, self.rows, self.texts
        flops = rows * (forward_flops(self.config) - text_flops(self.config)) + texts * text_flops(self.config)
        return {
            **{name: getattr(options, name) for name in ("arch", "px", "sampler", "steps", "guidance", "interval")},
            "batch": batch,
            "precision": str(self.precision).removeprefix("torch."),
            "compiled": self.compiled,
            "compiled_graphs": compiled_graphs() - graphs,
            "images_per_second": round(batch / spent, 4),
            "network_calls": calls,
            "images_of_all_calls": rows,
            "seconds_a_call": round(spent / calls, 5),
            "tflop_an_image": round(flops / batch / 1e12, 5),
            "tflops": round(flops / spent / 1e12, 4),
            "share_of_peak": self._shares(flops / spent),
            "peak_memory_gb": peak_memory_gb(self.device),
        }

    def _net(self, x: Tensor, c_noise: Tensor, text: TextEncoding) -> Tensor:
        self.calls, self.rows = self.calls + 1, self.rows + len(x)
        return self.model(x, c_noise, text)

    def _encode(self, text: Tensor) -> TextEncoding:
        self.texts += len(text)
        return self.model.encode_text(text)

    def _draw(self, batch: int, steps: int) -> None:
        config, options = self.config, self.options
        z = torch.randn(batch, config.in_channels, config.input_size, config.input_size, device=self.device)
        text = torch.randn(batch, config.caption_length, config.caption_channels, device=self.device)
        with torch.autocast(self.device.type, self.precision, enabled=self.precision != torch.float32):
            sample(
                self._net, z, text, EDM(), steps, options.guidance, self._encode,
                method=options.sampler, interval=options.interval,
            )  # fmt: skip

    def _fastest(self) -> int:
        """The batch from which on twice the size draws hardly faster, or does not fit."""
        size, speed = 1, self._speed(1)
        while size < LARGEST[self.device.type]:
            doubled = self._speed(2 * size)
            if doubled < WORTHWHILE * speed:
                break
            size, speed = 2 * size, doubled
        return size

    def _speed(self, batch: int) -> float:
        """Images a second over two steps; 0 if they do not fit."""
        try:
            return batch / seconds(lambda: self._draw(batch, 2), self.device, repeats=1)
        except torch.OutOfMemoryError:
            pass  # as long as the error is handled its traceback keeps the tensors of the attempt
        torch.cuda.empty_cache()
        return 0.0

    def _shares(self, reached: float) -> dict[str, float | None]:
        """Of the datasheet's peak in bfloat16, and of a large matmul timed now."""
        sheet = datasheet(self.device) if self.precision == torch.bfloat16 else None
        peaks = {"datasheet": sheet, "large_matmul": large_matmul(self.device, self.precision)}
        return {name: round(reached / flops, 4) if flops else None for name, flops in peaks.items()}
