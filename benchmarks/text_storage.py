"""Bytes and errors of the ways to store text embeddings: padded or trimmed, float16 or int8.

    python benchmarks/text_storage.py --captions captions.json --weights results/train/high_full \\
        --encoded results/encoded/scenes/00000.json

Bytes: the captions of a COCO-format file, through the tokenizer and at the sizes of the paper's encoder (77 tokens of
width 1024, random weights of one layer), written by the encode step itself; the size of the Arrow file is counted.
Errors: captions and latents of an encoded shard, through the text encoder it was encoded with, and the loss of the
trained stage on them at fixed noise levels. Prints JSON.
"""

import argparse
import json
import math
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice, product
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch
from torch import Tensor

from pipeline.artifacts import read_json, read_sidecar
from pipeline.config.steps import EncodeSlice
from pipeline.dataset import ArrowShard
from pipeline.diffusion import normals
from pipeline.encode.shards import Target, to_half, to_int8
from pipeline.encode.targets import text_facts
from pipeline.encode.text import encode_text
from pipeline.frozen.text import TextEncoder, load_text_encoder
from pipeline.model import MicroDiT
from pipeline.trained import Trained

CPU = torch.device("cpu")
SIGMAS = (0.05, 0.2, 0.5, 1.0, 2.0, 5.0, 20.0)
WAYS = tuple(product(("attend", "drop"), ("float16", "int8")))
PAPER = {"context_length": 77, "vocab_size": 49408, "width": 1024, "heads": 16, "layers": 1}


def bytes_a_caption(captions: list[str]) -> dict[str, Any]:
    """Size of the encode step's file / captions, for each way."""
    with tempfile.TemporaryDirectory() as name:
        encoder_folder = _paper_encoder(Path(name) / "encoder")
        found = {}
        for padding, storage in WAYS:
            encoder = load_text_encoder(str(encoder_folder), None, CPU, padding == "drop")
            target = Target(Path(name) / f"{padding}-{storage}.arrow", "text", "")
            facts = text_facts(_slice(str(encoder_folder), padding, storage))
            encode_text(target, encoder, facts, [str(i) for i in range(len(captions))], captions, 64)
            found[_name(padding, storage)] = round(target.path.stat().st_size / len(captions))
            tokens = load_text_encoder(str(encoder_folder), None, CPU).read(captions).mask.sum(1).double().mean()
    return {"captions": len(captions), "mean_tokens": round(float(tokens), 2), **found}


def _paper_encoder(folder: Path) -> Path:
    import open_clip
    from safetensors.torch import save_file

    folder.mkdir(parents=True)
    vision = {"image_size": 32, "layers": 1, "width": 64, "patch_size": 16}
    config = {"embed_dim": 64, "vision_cfg": vision, "text_cfg": PAPER}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": {}}))
    torch.manual_seed(0)
    save_file(open_clip.CLIP(**config).state_dict(), folder / "open_clip_model.safetensors")
    return folder


def _slice(encoder: str, padding: str, storage: str) -> EncodeSlice:
    return EncodeSlice(
        vae="embedded:vae", text_encoder=encoder, text_padding=padding, text_storage=storage, resolutions=[8], seed=0
    )


def _name(padding: str, storage: str) -> str:
    return f"{'padded' if padding == 'attend' else 'trimmed'}_{storage}"


def errors(encoded: Path, weights: Path, images: int) -> dict[str, Any]:
    """Relative error of the tokens that are read back, and the loss of a trained stage on them, for each way."""
    trained = Trained.read(weights)
    side = trained.config.input_size
    latents, captions = zip(*islice(_pairs(encoded, side), images), strict=True)
    encoder = load_text_encoder(trained.frozen["text_encoder"], None, CPU)
    exact, lengths = _embed(encoder, captions)
    found: dict[str, Any] = {
        "images": len(captions),
        "stage": str(weights),
        "loss_float32": _loss(trained, latents, exact, False),
    }
    for padding, storage in WAYS:
        stored = _stored(exact, lengths, padding, storage)
        real = torch.arange(exact.shape[1]) < lengths[:, None]
        error = (stored - exact)[real].norm(dim=-1) / exact[real].norm(dim=-1)
        loss = _loss(trained, latents, stored, padding == "drop")
        found[_name(padding, storage)] = {
            "error_of_a_token_mean": float(error.mean()),
            "error_of_a_token_max": float(error.max()),
            "loss": loss,
            "loss_changes_by": loss / found["loss_float32"] - 1,
        }
    return found


def _pairs(encoded: Path, side: int) -> Iterator[tuple[Tensor, str]]:
    """Latents [C, side, side] and the first caption of the images that have one."""
    sidecar = read_sidecar(encoded, "encoded")
    px = next(px for px, facts in sidecar.info["latents"].items() if facts["shape"][1] == side)
    shard = ArrowShard(sidecar.file(f"latents-{px}"), "latent")
    source = read_sidecar(encoded.parent / read_json(encoded)["info"]["captions"]["path"], "captions")
    rows = pq.read_table(source.file("captions"), columns=["key", "caption"]).to_pylist()
    assert len({row["key"] for row in rows}) == len(rows), "one caption an image is expected here"
    for number, row in enumerate(rows):
        if row["caption"]:
            yield torch.from_numpy(shard.row(number).copy()).float(), row["caption"]


def _embed(encoder: TextEncoder, captions: tuple[str, ...]) -> tuple[Tensor, Tensor]:
    parts = [encoder.encode(list(captions[i : i + 64])) for i in range(0, len(captions), 64)]
    tokens, lengths = (torch.cat(part) for part in zip(*parts, strict=True))
    return tokens, lengths


def _stored(exact: Tensor, lengths: Tensor, padding: str, storage: str) -> Tensor:
    """What training reads back."""
    half, bad = to_half(exact, 0)
    assert not bad
    if storage == "int8":
        small, scales = to_int8(half)
        half = (small.float() * scales.float()[:, :, None]).half()
    kept = torch.arange(exact.shape[1]) < lengths[:, None]
    return half.float() if padding == "attend" else half.float() * kept[:, :, None]


@torch.no_grad()
def _loss(trained: Trained, latents: tuple[Tensor, ...], text: Tensor, dropped: bool) -> float:
    """Mean over noise levels of the weighted EDM loss; the noise is the same every time."""
    config = replace(trained.config, drop_text_padding=dropped)
    network, edm, images = MicroDiT.from_state(config, trained.state).eval(), trained.edm, torch.stack(latents)
    noise = normals(0, "text storage", torch.arange(len(images)), images[0].numel()).float().view_as(images)
    total = 0.0
    for sigma in SIGMAS:
        normal = torch.full((len(images),), (math.log(sigma) - edm.p_mean) / edm.p_std)
        total += float(edm.loss(network, images, text, normal, noise, config.patch_size).per_image.double().mean())
    return total / len(SIGMAS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--captions", type=Path, required=True, help="captions in COCO's format, for the bytes")
    parser.add_argument("--weights", type=Path, required=True, help="folder of a trained stage, for the errors")
    parser.add_argument("--encoded", type=Path, required=True, help="sidecar of an encoded shard, for the errors")
    parser.add_argument("--images", type=int, default=1024, help="images of the shard to measure the loss on")
    options = parser.parse_args()
    captions = [row["caption"] for row in read_json(options.captions)["annotations"]]
    measured = {"bytes": bytes_a_caption(captions), "errors": errors(options.encoded, options.weights, options.images)}
    print(json.dumps(measured, indent=1))


if __name__ == "__main__":
    main()
