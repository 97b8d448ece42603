"""Small real inputs: a CLIP and an autoencoder saved with save_pretrained, shards of scenes, and a stage's folder."""

import io
import json
import tarfile
from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import save_file

from pipeline.artifacts import CAPTIONS, write_json, write_sidecar
from pipeline.config.running import Runtime
from pipeline.config.steps import EvaluateSlice, Settings
from pipeline.diffusion import EDM
from pipeline.embedded.scenes import caption, draw_scene, render
from pipeline.model import PRESETS, MicroDiT

TOKENS, WIDTH = 12, 16
CONFIG = replace(PRESETS["small"], input_size=8, patch_size=4, dim=32, depth=2, head_dim=8, mixer_dim=32, mixer_depth=1,
                 caption_channels=WIDTH, caption_length=TOKENS, num_experts=2)  # fmt: skip


def save_clip(folder):
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPTokenizer

    letters = sorted(ByteLevel.alphabet())
    pieces = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    tokenizer = CLIPTokenizer(vocab={piece: i for i, piece in enumerate(pieces)}, merges=[], model_max_length=TOKENS)
    tower = {"hidden_size": WIDTH, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    special = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    text = {**tower, **special, "vocab_size": len(pieces), "max_position_embeddings": TOKENS}
    torch.manual_seed(0)
    model = CLIPModel(CLIPConfig(text_config=text, vision_config={**tower, "image_size": 16, "patch_size": 8}, projection_dim=8))
    size = {"height": 16, "width": 16}
    processor = CLIPImageProcessor(size={"shortest_edge": 16}, crop_size=size, image_mean=[0.4] * 3, image_std=[0.3] * 3)
    for part in (model, tokenizer, processor):
        part.save_pretrained(folder)


def save_vae(folder):
    from diffusers import AutoencoderKL

    torch.manual_seed(1)
    blocks = {"down_block_types": ["DownEncoderBlock2D"] * 3, "up_block_types": ["UpDecoderBlock2D"] * 3}
    model = AutoencoderKL(**blocks, block_out_channels=[8] * 3, layers_per_block=1, norm_num_groups=4, sample_size=32)
    model.save_pretrained(folder)


@pytest.fixture(scope="session")
def frozen(tmp_path_factory):
    """References of a CLIP and an autoencoder of factor 4."""
    folder = tmp_path_factory.mktemp("frozen")
    save_clip(folder / "clip")
    save_vae(folder / "vae")
    return {"clip": str(folder / "clip"), "vae": str(folder / "vae")}


def png(image):
    buffer = io.BytesIO()
    image.save(buffer, format="png")
    return buffer.getvalue()


def _write_shard(folder, name, samples):
    """samples: (key, image bytes, caption or None, attributes or None). Returns the sidecars of images and captions."""
    tar, table = folder / f"{name}.tar", folder / "captions" / f"{name}.parquet"
    table.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(tar, "w") as archive:
        for key, image, text, attributes in samples:
            meta = {"key": key, "caption": text, **({"attributes": attributes} if attributes else {})}
            for suffix, content in (("png", image), ("json", json.dumps(meta).encode())):
                member = tarfile.TarInfo(f"{key}.{suffix}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    rows = [{"key": key, "caption": text, "captioner": None, "reason": None} for key, _, text, _ in samples]
    pq.write_table(pa.Table.from_pylist(rows, CAPTIONS), table)
    images, captions = tar.with_suffix(".json"), table.with_suffix(".json")
    write_sidecar(images, "images", {"images": (tar, len(samples))}, {})
    write_sidecar(captions, "captions", {"captions": (table, len(samples))}, {})
    return images, captions


@pytest.fixture
def write_shard():
    return _write_shard


def scene_samples(indices, uncaptioned=()):
    scenes = {i: draw_scene(0, "heldout", i, float(i % 4 == 3)) for i in indices}
    return [
        (f"{i:012d}", png(render(scene, 64)), None if i in uncaptioned else caption(scene), scene.attributes())
        for i, scene in scenes.items()
    ]


@pytest.fixture(scope="session")
def shards(tmp_path_factory):
    """Two shards of 12 scenes, ids out of order and one without a caption: the sidecars of images and of captions."""
    folder = tmp_path_factory.mktemp("data")
    order = [9, 2, 11, 4, 1, 12, 3, 10, 5, 8, 7, 6]
    pairs = [
        _write_shard(folder, "00000", scene_samples(order[:7], uncaptioned={4})),
        _write_shard(folder, "00001", scene_samples(order[7:])),
    ]
    return tuple(map(list, zip(*pairs, strict=True)))


@pytest.fixture(scope="session")
def stage(tmp_path_factory, frozen):
    """The folder of a stage whose weights are random, but not those of a new model, which draws nothing."""
    folder = tmp_path_factory.mktemp("stage")
    torch.manual_seed(2)
    state = {name: value + 0.2 * torch.randn(value.shape) for name, value in MicroDiT(CONFIG).state_dict().items()}
    save_file(state, folder / "ema.safetensors")
    write_json(folder / "summary.json", {
        "model": CONFIG.to_dict(), "diffusion": EDM(sigma_data=0.7).to_dict(), "fingerprint": "abc", "images_seen": 640,
        "images_seen_total": 640,
        "vae": frozen["vae"], "text_encoder": frozen["clip"],
    })  # fmt: skip
    return folder


@pytest.fixture
def slice_of(frozen):
    """The step's configuration with some evaluation keys changed."""

    def make(vae=frozen["vae"], **keys):
        evaluation = {"source": "coco", "images": 8, "features": frozen["clip"], "clip_score": frozen["clip"],
                      "steps": 2, "guidance": 2.0, "untrained_images": 4, **keys}  # fmt: skip
        models = {"vae": vae, "text_encoder": frozen["clip"], "captioner": frozen["clip"]}
        return EvaluateSlice(evaluation=evaluation, models=models, seed=5)

    return make


@pytest.fixture
def settings():
    return Settings(runtime=Runtime(device="cpu", sample_batch=3, encode_batch=5))
