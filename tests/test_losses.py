"""Chapter 19: cross-entropy, its units, and the loss in chunks."""

import math

import pytest
import torch
import torch.nn.functional as F

from lmcourse.losses import (
    IGNORE_INDEX,
    bits_per_byte,
    chunked_cross_entropy,
    cross_entropy,
    perplexity,
)


def test_loss_is_the_mean_of_the_logarithms():
    logits = torch.randn(2, 3, 5, dtype=torch.float64,
                         generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([[0, 4, -100], [2, 2, 1]])
    total = [-math.log(logits[b, t].softmax(-1)[labels[b, t]])
             for b in range(2) for t in range(3) if labels[b, t] >= 0]
    assert cross_entropy(logits, labels=labels).item() == pytest.approx(
        sum(total) / 5, abs=1e-12)


def test_half_precision_logits_are_scored_in_float32():
    logits = torch.randn(4, 7).to(torch.bfloat16)
    labels = torch.tensor([0, 1, 2, 3])
    loss = cross_entropy(logits, labels=labels)
    assert loss.dtype == torch.float32
    assert loss == F.cross_entropy(logits.float(), labels)


@pytest.mark.parametrize("chunk_size, dtype", [
    (1, torch.float64), (3, torch.float32), (8, torch.float64)])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("softcap", [None, 1.5])
def test_chunked_loss_equals_the_plain_one(chunk_size, dtype, bias, softcap):
    generator = torch.Generator().manual_seed(1)
    hidden, weight, b = (
        torch.randn(*shape, generator=generator, dtype=dtype).requires_grad_()
        for shape in [(2, 4, 6), (9, 6), (9,)])
    labels = torch.randint(9, (2, 4), generator=generator)
    labels[0, 1] = IGNORE_INDEX
    b = b if bias else None
    leaves = [x for x in (hidden, weight, b) if x is not None]
    logits = F.linear(hidden, weight, b)
    if softcap:
        logits = softcap * torch.tanh(logits / softcap)
    plain = 3 * cross_entropy(logits, labels=labels)
    expected = torch.autograd.grad(plain, leaves)
    loss = 3 * chunked_cross_entropy(hidden, weight=weight, bias=b,
                                     labels=labels, softcap=softcap,
                                     chunk_size=chunk_size)
    got = torch.autograd.grad(loss, leaves)
    torch.testing.assert_close(loss, plain)
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one, other)


def test_chunked_loss_under_autocast_and_without_gradients():
    generator = torch.Generator().manual_seed(2)
    hidden = torch.randn(8, 6, generator=generator)
    weight = torch.randn(9, 6, generator=generator, requires_grad=True)
    labels = torch.arange(8)
    with torch.no_grad():
        loss = chunked_cross_entropy(hidden, weight=weight, labels=labels)
    assert not loss.requires_grad
    torch.testing.assert_close(
        loss, F.cross_entropy(hidden @ weight.detach().T, labels))
    with torch.autocast("cpu", torch.bfloat16):
        half = chunked_cross_entropy(hidden, weight=weight, labels=labels)
    assert half.dtype == torch.float32
    half.backward()
    assert weight.grad.dtype == torch.float32
    rounded = (hidden.bfloat16() @ weight.detach().bfloat16().T).float()
    torch.testing.assert_close(half.detach(),
                               F.cross_entropy(rounded, labels))


def test_chunked_loss_is_differentiated_once():
    weight = torch.randn(5, 3, requires_grad=True)
    loss = chunked_cross_entropy(torch.randn(2, 3), weight=weight,
                                 labels=torch.tensor([0, 4]))
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="second backward"):
        loss.backward()


def test_chunked_loss_never_holds_all_logits():
    """No tensor of more than a chunk's logits is made."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Largest(TorchDispatchMode):
        rows = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            out = function(*args, **(kwargs or {}))
            for x in out if isinstance(out, tuple) else (out,):
                if isinstance(x, torch.Tensor) and x.shape[-1:] == (50,):
                    self.rows = max(self.rows, x.numel() // 50)
            return out

    hidden = torch.randn(64, 3, requires_grad=True)
    weight = torch.randn(50, 3, requires_grad=True)
    labels = torch.zeros(64, dtype=torch.long)
    with Largest() as seen:
        chunked_cross_entropy(hidden, weight=weight, labels=labels,
                              chunk_size=8).backward()
    assert seen.rows == 8
    with Largest() as seen:
        cross_entropy(hidden @ weight.T, labels=labels).backward()
    assert seen.rows == 64


@pytest.mark.parametrize("call", [
    lambda x, labels: cross_entropy(x @ x.T, labels=labels),
    lambda x, labels: chunked_cross_entropy(x, weight=x, labels=labels),
])
@pytest.mark.parametrize("labels, message", [
    ([0, 1, 4, 0], "labels: 4 is outside the vocabulary, must be 0 to 3"),
    ([0, -1, 3, 0], "labels: -1 is outside the vocabulary"),
    ([-100] * 4, "labels: all are -100, must ask for at least one token"),
    ([0, 1], r"labels: the shape is \(2,\), must be \(4,\)"),
])
def test_bad_labels(call, labels, message):
    with pytest.raises(ValueError, match=message):
        call(torch.randn(4, 4), torch.tensor(labels))


def test_units():
    assert perplexity(math.log(50)) == pytest.approx(50)
    # one token of one bit for each of two bytes
    assert bits_per_byte(math.log(2), n_tokens=3, n_bytes=6) == 0.5
    with pytest.raises(ValueError, match="n_bytes=0: must be at least 1"):
        bits_per_byte(1.0, n_tokens=3, n_bytes=0)
    with pytest.raises(ValueError, match="n_tokens=0: must be at least 1"):
        bits_per_byte(1.0, n_tokens=0, n_bytes=4)


def relative(got, expected):
    return ((got.double() - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize("dtype, scale, autocast", [
    (torch.float16, 65_536.0, True), (torch.float16, 65_536.0, False),
    (torch.float16, 1.0, True), (torch.bfloat16, 1.0, True)])
def test_half_precision_keeps_small_gradients(dtype, scale, autocast):
    """V = 10,000 and N = 4,096: 1 / (V N) is no number of float16, and nor
    is 65,536, the first loss scale of `GradScaler`.
    """
    generator = torch.Generator().manual_seed(4)
    V, N, D = 10_000, 4_096, 8
    hidden = torch.randn(N, D, generator=generator)
    weight = torch.randn(V, D, generator=generator) / 8
    labels = torch.randint(100, (N,), generator=generator)
    exact = [x.double().requires_grad_() for x in (hidden, weight)]
    F.cross_entropy(exact[0] @ exact[1].T, labels).backward()
    kept = torch.float32 if autocast else dtype
    halves = [x.to(kept).requires_grad_() for x in (hidden, weight)]
    with torch.autocast("cpu", dtype, enabled=autocast):
        loss = chunked_cross_entropy(halves[0], weight=halves[1],
                                     labels=labels, chunk_size=1024)
    (loss * scale).backward()
    got = [x.grad.double() / scale for x in halves]
    no_label = slice(100, None)
    assert halves[1].grad.dtype == kept
    assert relative(got[1][no_label], exact[1].grad[no_label]) < 0.02
    for one, other in zip(got, exact, strict=True):
        assert relative(one, other.grad) < 0.01


def test_chunks_add_up_in_float32():
    """The head's gradient is nearer the truth than that of one product in
    bfloat16; added up in bfloat16, 128 chunks would be further from it.
    """
    generator = torch.Generator().manual_seed(5)
    hidden = torch.randn(8_192, 16, generator=generator).bfloat16()
    weight = torch.randn(50, 16, generator=generator).bfloat16().float()
    labels = torch.randint(50, (8_192,), generator=generator)
    exact = weight.double().requires_grad_()
    F.cross_entropy(hidden.double() @ exact.T, labels).backward()
    errors = []
    for chunk_size in (64, None):
        half = weight.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16):
            loss = chunked_cross_entropy(
                hidden, weight=half, labels=labels, chunk_size=chunk_size
            ) if chunk_size else F.cross_entropy(
                (hidden @ half.T).float(), labels)
        loss.backward()
        errors.append(relative(half.grad, exact.grad))
    assert errors[0] < errors[1] < 0.01
