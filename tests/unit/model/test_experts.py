import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.model.experts import ExpertMLP


def layer(dim, hidden, experts, capacity, seed, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    mlp = ExpertMLP(dim, hidden, experts, capacity).to(dtype)
    for parameter in mlp.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator, dtype=dtype)
    return mlp, generator


def one_by_one(mlp, x):
    """The definition, a token at a time."""
    out = torch.zeros_like(x)
    chosen = int(mlp.capacity * x.shape[1] / len(mlp.w1))
    for image in range(len(x)):
        scores = (x[image] @ mlp.gate.weight.T).softmax(dim=-1, dtype=torch.float32)
        for expert in range(len(mlp.w1)):
            for token in scores[:, expert].argsort(descending=True)[:chosen]:
                y = F.gelu(x[image, token] @ mlp.w1[expert]) @ mlp.w2[expert]
                out[image, token] = out[image, token] + scores[token, expert] * y
    return out


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 3), st.integers(4, 12), st.integers(1, 4), st.floats(1.0, 4.0), st.integers(0, 99))
def test_equals_the_definition(batch, tokens, experts, capacity, seed):
    mlp, generator = layer(5, 7, experts, min(capacity, experts), seed)
    x = torch.randn(batch, tokens, 5, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(mlp(x), one_by_one(mlp, x))


def test_gradients_equal_those_of_the_definition():
    mlp, generator = layer(4, 6, 3, 2.0, 1)
    x = torch.randn(2, 6, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    target = torch.randn(2, 6, 4, generator=generator, dtype=torch.float64)
    wanted = [x, *mlp.parameters()]
    found = torch.autograd.grad((mlp(x) * target).sum(), wanted)
    expected = torch.autograd.grad((one_by_one(mlp, x) * target).sum(), wanted)
    for a, b in zip(found, expected, strict=True):
        assert b.any()
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-9)


def test_routing_stays_within_an_image():
    mlp, generator = layer(4, 6, 2, 1.0, 2)
    x = torch.randn(3, 8, 4, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(mlp(x)[1:2], mlp(x[1:2]))


def test_too_few_tokens_is_told():
    mlp, _ = layer(4, 6, 8, 2.0, 0)
    with pytest.raises(ValueError, match=r"none of the 3 kept tokens; raise it"):
        mlp(torch.zeros(1, 3, 4, dtype=torch.float64))


def test_no_tensor_grows_with_the_square_of_the_tokens():
    """Largest intermediate per token is the same at 64 and at 256 tokens."""
    sizes = []

    class Largest(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            sizes.extend(t.numel() for t in (out if isinstance(out, tuple) else (out,)) if torch.is_tensor(t))
            return out

    def per_token(tokens):
        sizes.clear()
        mlp, generator = layer(4, 8, 4, 2.0, 0)
        with Largest():
            mlp(torch.randn(1, tokens, 4, generator=generator, dtype=torch.float64))
        return max(sizes) / tokens

    assert per_token(64) == per_token(256)
