"""Text that is stored in int8 reaches training as float16."""

import numpy as np
import pyarrow as pa
import pytest
import torch

from pipeline.artifacts import text_schema
from pipeline.bench.synthetic import DataSet
from pipeline.config.schema import Stage
from pipeline.dataset import ArrowShard, Manifest
from pipeline.errors import UserError
from pipeline.train.data import Samples

STAGE = Stage(px=16, mask_ratio=0, images=64, batch_images=64)


def table(manifest, shard):
    with pa.ipc.open_file(str(manifest.text(shard).path)) as file:
        return file.read_all()


@pytest.mark.parametrize("padding", ["attend", "drop"])
@pytest.mark.parametrize("reading", ["mapped", "read"])
@pytest.mark.filterwarnings("error")
def test_a_batch_holds_int8_times_scale(tmp_path, reading, padding):
    made = DataSet(rows=1200, shards=2, latent=(2, 2, 2), text=(3, 4), padding=padding, storage="int8", captions=2)
    manifest = Manifest.read(made.write(tmp_path))
    samples, stored = Samples(manifest, STAGE, 3, "toy", reading), [table(manifest, shard) for shard in (0, 1)]
    expected = []
    for shard in stored:
        for row in range(len(shard)):
            values = np.array(shard["tokens"][row].as_py(), np.float32).reshape(-1, 4)
            scales = np.array(shard["scales"][row].as_py(), np.float32)[:, None]
            whole = np.zeros((3, 4), np.float16)
            whole[: len(values)] = (values * scales).astype(np.float16)
            expected.append(whole)
    index, starts = manifest.index, (0, len(stored[0]))
    batch, rows = samples.batch(0, 700), samples.stream.rows(0, 700)
    assert batch.text.dtype == torch.float16 and batch.text.shape == (700, 3, 4)
    for text, row in zip(batch.text.numpy(), rows, strict=True):
        first = starts[index.shard[row]] + index.text[row]
        assert any(np.array_equal(text, expected[first + caption]) for caption in range(index.texts[row]))
    one = manifest.text(1, reading).row(300)
    assert one.dtype == np.float16 and np.array_equal(one, expected[starts[1] + 300])


def write(path, scales, kind=pa.int8()):  # noqa: B008
    schema = text_schema((2, 4), {"padding": "drop", "dtype": "int8"})
    schema = schema.set(1, pa.field("tokens", pa.list_(kind)))
    columns = {"key": ["a", "b"], "tokens": [[1] * 8, [2] * 4], "length": [2, 1], "scales": scales}
    with pa.ipc.new_file(str(path), schema) as sink:
        sink.write_table(pa.table(columns, schema=schema))
    return path


def test_scales_that_do_not_fit_are_refused(tmp_path):
    good = ArrowShard(write(tmp_path / "good.arrow", [np.float16([1, 2]), np.float16([0.5])]), "tokens")
    assert good.row(0).tolist() == [[1] * 4, [2] * 4] and good.row(1).tolist() == [[1] * 4, [0] * 4]
    few = ArrowShard(write(tmp_path / "few.arrow", [np.float16([1]), np.float16([0.5])]), "tokens")
    with pytest.raises(UserError, match=r"few\.arrow: .*a token without its scale"):
        few.block(0)
    with pytest.raises(UserError, match=r"kind\.arrow: .*not lists of int8"):
        ArrowShard(write(tmp_path / "kind.arrow", [np.float16([1, 1]), np.float16([1])], pa.int16()), "tokens")
