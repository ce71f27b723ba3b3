"""The chunked head against autograd through whole float64 logits: bias, scale, soft-cap, dtypes, chunks, parts."""

from __future__ import annotations

import weakref

import pytest
import torch
from torch import Tensor

from preceptor.kernels.linear_loss import linear_loss
from preceptor.signals import Head

N, V, D = 13, 37, 9


def inputs(dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = ((N, D), (V, D), (V,))
    hidden, weight, bias = (
        torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_() for shape in shapes
    )
    return hidden, weight, bias, torch.randint(0, V, (N,), generator=generator)


def cross_entropy(label_N: Tensor):
    def chunk_loss(logits: Tensor, rows: slice, wants_grad: bool) -> tuple[Tensor, Tensor | None]:
        log_probs = logits.log_softmax(-1)
        value = -log_probs.gather(1, label_N[rows, None]).T
        grad = log_probs.exp()
        grad[range(len(grad)), label_N[rows]] -= 1
        return value, 2 * grad if wants_grad else None  # the gradient of twice the value: a weight of 2

    return chunk_loss


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("chunk", [V, 3 * V, 10**6])
@pytest.mark.parametrize(("scale", "softcap"), [(1.0, None), (0.3, None), (1.0, 2.0), (1.7, 3.0)])
def test_values_and_gradients(dtype: torch.dtype, chunk: int, scale: float, softcap: float | None) -> None:
    hidden, weight, bias, label = inputs(dtype)
    anchor, values = linear_loss(
        hidden, Head(weight, bias, scale, softcap), cross_entropy(label), 1, chunk_elements=chunk
    )
    (anchor * 0.25).backward()

    h, w, b = (x.detach().double().requires_grad_() for x in (hidden, weight, bias))
    logits = (h @ w.T + b) * scale
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    expected = torch.nn.functional.cross_entropy(logits, label, reduction="none")
    (expected.sum() * 2 * 0.25).backward()

    tolerance = {torch.float64: 1e-12, torch.float32: 2e-6, torch.bfloat16: 3e-2}[dtype]
    torch.testing.assert_close(values[0].double(), expected, rtol=tolerance, atol=tolerance)
    for got, wanted in ((hidden, h), (weight, w), (bias, b)):
        assert got.grad is not None
        assert got.grad.dtype == dtype
        assert wanted.grad is not None
        assert float((got.grad.double() - wanted.grad).norm() / wanted.grad.norm()) <= tolerance


def test_no_position_gives_a_zero_gradient_and_not_none() -> None:
    hidden, weight, bias, label = inputs(torch.float32)
    anchor, values = linear_loss(hidden[:0], Head(weight, bias), cross_entropy(label[:0]), 1)
    anchor.backward()
    assert values.shape == (1, 0)
    for each in (weight, bias):
        assert each.grad is not None
        assert not each.grad.any()


def test_a_frozen_head_gets_no_gradient_buffer() -> None:
    hidden, weight, bias, label = inputs(torch.float32)
    weight.requires_grad_(False)
    bias.requires_grad_(False)
    anchor, _ = linear_loss(hidden, Head(weight, bias), cross_entropy(label), 1)
    anchor.backward()
    assert hidden.grad is not None
    assert weight.grad is None


def test_without_autograd_nothing_is_computed_but_values() -> None:
    hidden, weight, bias, label = inputs(torch.float32)
    wanted: list[bool] = []

    def chunk_loss(logits: Tensor, rows: slice, wants_grad: bool) -> tuple[Tensor, Tensor | None]:
        wanted.append(wants_grad)
        return cross_entropy(label)(logits, rows, wants_grad)

    with torch.no_grad():
        anchor, values = linear_loss(hidden, Head(weight, bias), chunk_loss, 1)
    assert wanted == [False]
    assert not anchor.requires_grad
    assert float(values.sum()) > 0


def test_a_second_backward_is_refused() -> None:
    hidden, weight, bias, label = inputs(torch.float32)
    anchor, _ = linear_loss(hidden, Head(weight, bias), cross_entropy(label), 1)
    anchor.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="backward was called twice"):
        anchor.backward()


def test_the_logits_of_all_positions_are_never_held() -> None:
    """The largest tensor made is one chunk of logits (or dW), whatever N is."""
    from torch.utils._python_dispatch import TorchDispatchMode

    largest = 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            nonlocal largest
            result = function(*args, **(kwargs or {}))
            if isinstance(result, Tensor):
                largest = max(largest, result.numel())
            return result

    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(4000, D, generator=generator, requires_grad=True)
    weight = torch.randn(V, D, generator=generator, requires_grad=True)
    label = torch.randint(0, V, (4000,), generator=generator)
    with Watch():
        anchor, _ = linear_loss(hidden, Head(weight), cross_entropy(label), 1, chunk_elements=10 * V)
        anchor.backward()
    assert largest <= hidden.numel() < 4000 * V


def test_a_chunk_is_gone_before_the_next_one_is_made() -> None:
    """Two chunks at once would be twice the memory that their size was chosen for."""
    hidden, weight, _, label = inputs(torch.float32)
    loss, held = cross_entropy(label), list[weakref.ref[Tensor]]()

    def chunk_loss(logits: Tensor, rows: slice, wants_grad: bool) -> tuple[Tensor, Tensor | None]:
        assert not any(each() is not None for each in held)
        values, grad = loss(logits, rows, wants_grad)
        assert grad is not None
        held.extend((weakref.ref(logits), weakref.ref(grad)))
        return values, grad

    linear_loss(hidden, Head(weight), chunk_loss, 1, chunk_elements=5 * V)
    assert len(held) == 6


def test_the_heads_gradient_is_summed_over_chunks_in_float32() -> None:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(256, D, generator=generator).bfloat16()
    weight = torch.randn(V, D, generator=generator).bfloat16().requires_grad_()
    label = torch.randint(0, V, (256,), generator=generator)
    anchor, _ = linear_loss(hidden, Head(weight), cross_entropy(label), 1, chunk_elements=V)
    anchor.backward()
    w = weight.detach().double().requires_grad_()
    (2 * torch.nn.functional.cross_entropy(hidden.double() @ w.T, label, reduction="sum")).backward()
    assert weight.grad is not None
    assert w.grad is not None
    # Summed in bfloat16 it is off by 1.1e-2.
    assert float((weight.grad.double() - w.grad).norm() / w.grad.norm()) <= 4e-3


def test_the_losss_scale_meets_a_float32_gradient_under_autocast() -> None:
    hidden, weight, _, label = inputs(torch.float32)
    found = []
    for scale in (1.0, 1 / 3):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            anchor, _ = linear_loss(hidden, Head(weight), cross_entropy(label), 1)
        found += torch.autograd.grad(anchor * scale, weight)
    torch.testing.assert_close(found[1] * 3, found[0], rtol=1e-6, atol=0)
