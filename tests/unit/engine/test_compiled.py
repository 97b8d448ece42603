from dataclasses import replace

import pytest
import torch

from pipeline.diffusion import EDM
from pipeline.engine.compiled import compile_blocks, compiled_draw, compiled_graphs, distinct_blocks
from pipeline.engine.objective import Objective
from pipeline.model import PRESETS, MicroDiT, MicroDiTConfig, backbone_shapes, mixer_shapes
from tests.unit.engine.small_steps import CONFIG, objective, recipe, samples, warmed

# The depth and the ratios of XL/2, all widths shrunk.
NARROW = replace(PRESETS["xl2"], input_size=8, dim=64, head_dim=4, mixer_dim=48, multiple_of=16, num_experts=2)
NARROW = replace(NARROW, caption_channels=8, caption_length=3)
# One block in the mixer and one in the backbone, of the same shape.
TWINS = replace(CONFIG, depth=1, mixer_depth=1, mixer_dim=CONFIG.dim, qkv_ratio=(1, 1), ffn_ratio=(4, 4), num_experts=0)


def graphs_of(config: MicroDiTConfig, mask_ratio: float, images: int = 2, passes: int = 2) -> int:
    """Graphs that some forward passes of the loss need."""
    model, loss_of = MicroDiT(config), Objective(EDM(), config, recipe(mask_ratio=mask_ratio))
    compile_blocks(model, backend="eager")
    draw, batch = compiled_draw(loss_of, backend="eager"), samples(count=images)
    shape = images, config.in_channels, config.input_size, config.input_size
    batch = batch._replace(latents=torch.ones(shape), text=torch.ones(images, config.caption_length, config.caption_channels))
    before = compiled_graphs()
    for _ in range(passes):
        loss_of(model, batch, draw)
    return compiled_graphs() - before


def test_graphs_of_the_real_xl2():
    """Its 28 backbone blocks have 24 different shapes: some dense hidden widths round up to the same."""
    with torch.device("meta"):
        model = MicroDiT(PRESETS["xl2"])
    assert [len(model.blocks), len(model.patch_mixer)] == [28, 6]
    shapes = [{name: p.shape for name, p in block.named_parameters()} for block in (*model.blocks, *model.patch_mixer)]
    different = {str(shape) for shape in shapes}
    assert [len({str(shape) for shape in part}) for part in (shapes[:28], shapes[28:])] == [24, 2]
    for mask_ratio in (0.0, 0.75):
        assert distinct_blocks(PRESETS["xl2"], mask_ratio) == len(different) + 2 == 28


def test_every_block_of_an_xl_in_small_is_compiled_and_none_twice(compiler):
    assert len(set(backbone_shapes(NARROW))) == 25
    assert graphs_of(NARROW, 0.75) == distinct_blocks(NARROW, 0.75) + 1  # the random numbers
    assert not compiler.utils.counters["graph_break"]


def test_a_mixer_block_shares_the_graph_of_a_backbone_block_over_as_many_tokens(compiler):
    assert mixer_shapes(TWINS) == backbone_shapes(TWINS)
    assert [distinct_blocks(TWINS, mask_ratio) for mask_ratio in (0.5, 0.0)] == [4, 3]
    assert graphs_of(TWINS, 0.0) == 3 + 1


def test_another_batch_size_is_compiled_anew(compiler):
    first = graphs_of(TWINS, 0.0)
    assert graphs_of(TWINS, 0.0) == 0
    assert graphs_of(TWINS, 0.0, images=3) == first


def test_shapes_of_as_many_tokens_share_their_graphs(compiler):
    """Random numbers alone are compiled for each shape; blocks know tokens."""
    model, loss_of = MicroDiT(TWINS), Objective(EDM(), TWINS, recipe(mask_ratio=0.5))
    compile_blocks(model, backend="eager")
    draw, batch, found = compiled_draw(loss_of, backend="eager"), samples(count=2), []
    for shape in ((4, 4), (2, 8), (8, 2), (3, 5), (5, 3), (2, 8)):
        before = compiled_graphs()
        loss_of(model, batch._replace(latents=torch.ones(2, TWINS.in_channels, *shape), text=batch.text.float()), draw)
        found.append(compiled_graphs() - before)
    own = distinct_blocks(TWINS, 0.5)
    assert found == [own + 1, 1, 1, own, 1, 0]  # for 15 tokens all is new but the text block


def test_too_many_variants_are_an_error_and_not_left_uncompiled(compiler):
    model, loss_of = warmed(), objective()
    compile_blocks(model, backend="eager")
    torch._dynamo.config.recompile_limit = 2
    with pytest.raises(Exception, match="recompile_limit"):
        loss_of(model, samples().to(torch.device("cpu")))


def test_names_parameters_and_hooks_stay_as_they_are(compiler):
    model, plain = MicroDiT(TWINS), MicroDiT(TWINS)
    before, called = dict(model.named_parameters()), []
    model.blocks[0].register_forward_hook(lambda *_: called.append(None))
    compile_blocks(model, backend="eager")
    assert list(model.state_dict()) == list(plain.state_dict())
    assert all(parameter is before[name] for name, parameter in model.named_parameters())
    assert [type(module) for module in model.modules()] == [type(module) for module in plain.modules()]
    batch = samples().to(torch.device("cpu"))
    torch.testing.assert_close(objective()(model, batch).mean, objective()(plain, batch).mean)
    assert called == [None]
