"""Losses from stored predictions against loops in float64: exact in expectation, lower bounds, gradients, extremes."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from oracle import brute
from preceptor.errors import InputError
from preceptor.kernels.linear_loss import linear_loss
from preceptor.objective import Logits
from preceptor.objective.terms import HeadChunk
from preceptor.signals import Head
from preceptor.stored_signals import SampledTokens, Stored, TopTokens, WholeDistributions
from preceptor.teachers.store_modes import FullMode, Mode, SampleMode, TopMode
from preceptor.teachers.store_rows import row_key, uniforms

N, V, D = 11, 43, 7
SPREADS = {"another": 1.0, "near": 0.03, "one-sided": 60.0}
DIVERGENCES = ("forward_kl", "reverse_kl", "jsd", "skew_kl")


def made(kind: str) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(N, D, generator=generator, dtype=torch.float64)
    weight = torch.randn(V, D, generator=generator, dtype=torch.float64)
    noise = torch.randn(N, V, generator=generator, dtype=torch.float64)
    return hidden, weight, hidden @ weight.T + SPREADS[kind] * noise


def through_head(
    term: Logits, hidden: Tensor, weight: Tensor, stored: Stored, chunk: int = 4
) -> tuple[Tensor, Tensor, Tensor]:
    """Values [n] and the gradients on hidden states and head, as the chunked pass gives them."""
    h, w = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
    label = torch.zeros(len(h), dtype=torch.int64)

    def chunk_loss(logits: Tensor, rows: slice, wants_grad: bool) -> tuple[Tensor, Tensor | None]:
        of = HeadChunk(logits, label[rows], stored=stored.of(rows.start, rows.stop))
        value, grad = term.evaluate(of, wants_grad)
        if grad is not None and grad.shape[1] < logits.shape[1]:
            grad = torch.nn.functional.pad(grad, (0, logits.shape[1] - grad.shape[1]))
        return value[None], grad

    anchor, values = linear_loss(h, Head(w), chunk_loss, 1, chunk_elements=chunk * len(w))
    anchor.backward()
    assert h.grad is not None
    assert w.grad is not None
    return values[0], h.grad, w.grad


def stored_by(mode: Mode, logits: Tensor, seed: int = 0) -> Stored:
    """Taken, packed into bytes, and read back, in two rows."""
    drawn = uniforms(seed, row_key(np.arange(3)), np.arange(len(logits)), mode.draws) if mode.draws else None
    taken = mode.take(logits, np.empty((len(logits), 0)) if drawn is None else drawn)
    rows = [[each[first:last] for each in taken] for first, last in ((0, 4), (4, len(logits)))]
    return mode.unpack([(np.frombuffer(mode.pack(row), np.uint8), len(row[0])) for row in rows])


# --- sampled tokens -------------------------------------------------------------------------------------------------


def outcomes(p: list[float], draws: int) -> list[tuple[float, tuple[int, ...]]]:
    """Every result of stratified draws from p, with its probability: draw i is uniform on [i, i+1)/draws."""
    edges = [0.0, *itertools.accumulate(p)]
    strata = []
    for i in range(draws):
        low, high = i / draws, (i + 1) / draws
        overlap = [max(0.0, min(high, b) - max(low, a)) * draws for a, b in itertools.pairwise(edges)]
        strata.append(overlap)
    return [
        (math.prod(strata[i][token] for i, token in enumerate(tokens)), tokens)
        for tokens in itertools.product(range(len(p)), repeat=draws)
    ]


def of_tokens(tokens: tuple[int, ...], entropy: float, temperature: float = 1.0, vocabulary: int = 4) -> SampledTokens:
    distinct = sorted(set(tokens))
    return SampledTokens(
        index_U=torch.zeros(len(distinct), dtype=torch.int64),
        token_U=torch.tensor(distinct),
        share_U=torch.tensor([tokens.count(token) / len(tokens) for token in distinct]),
        entropy_N=torch.tensor([entropy]),
        first_N=torch.tensor([0, len(distinct)]),
        temperature=temperature,
        vocabulary=vocabulary,
    )


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_value_and_gradient_are_exact_in_expectation(temperature: float) -> None:
    """Over every outcome of three draws from four tokens, with its probability: KL and its gradient, to float32."""
    z_S = torch.tensor([0.3, -1.1, 0.8, 0.1], dtype=torch.float64, requires_grad=True)
    z_T = torch.tensor([1.3, 0.2, -0.9, -1.7], dtype=torch.float64)
    p_T = (z_T / temperature).softmax(0)
    entropy = float(-(p_T * p_T.log()).sum())
    term = Logits(temperature=temperature)
    expected_value, expected_grad, total = 0.0, torch.zeros(4, dtype=torch.float64), 0.0
    for probability, tokens in outcomes(p_T.tolist(), 3):
        chunk = HeadChunk(z_S.detach()[None], torch.zeros(1, dtype=torch.int64))
        chunk.stored = of_tokens(tokens, entropy, temperature)
        value, grad = term.evaluate(chunk, True)
        assert grad is not None
        expected_value += probability * float(value)
        expected_grad += probability * grad[0]
        total += probability
    assert total == pytest.approx(1, abs=1e-12)
    reference = temperature**2 * brute.divergence(p_T, (z_S / temperature).softmax(0), "forward_kl")
    reference.backward()
    assert z_S.grad is not None
    assert expected_value == pytest.approx(float(reference.detach()), abs=1e-6)
    torch.testing.assert_close(expected_grad, z_S.grad, atol=1e-7, rtol=0)


def test_draws_are_unbiased_and_kept_as_they_were_drawn() -> None:
    """Mean shares over 400 seeds are the teacher's probabilities, within 5 standard errors of independent draws."""
    logits = torch.randn(3, 6, generator=torch.Generator().manual_seed(1)) * 2
    p = logits.softmax(-1)
    shares = torch.zeros(3, 6)
    for seed in range(400):
        stored = stored_rows(SampleMode(6, 1.0, 50), logits, seed)
        shares.index_put_((stored.index_U, stored.token_U), stored.share_U, accumulate=True)
    error = (p * (1 - p) / (50 * 400)).sqrt()
    assert bool(((shares / 400 - p).abs() <= 5 * error).all())


def stored_rows(mode: SampleMode, logits: Tensor, seed: int) -> SampledTokens:
    taken = mode.take(logits, uniforms(seed, row_key(np.arange(3)), np.arange(len(logits)), mode.draws))
    return mode.unpack([(np.frombuffer(mode.pack(taken), np.uint8), len(logits))])


def test_the_logged_kl_is_unbiased_for_a_whole_vocabulary() -> None:
    """Over 300 seeds, a student another than its teacher: the mean value is the KL within 4 standard errors."""
    hidden, weight, teacher = made("another")
    exact = torch.stack(
        [brute.divergence(teacher[n].softmax(-1), (weight @ hidden[n]).softmax(-1), "forward_kl") for n in range(N)]
    ).sum()
    values = []
    for seed in range(300):
        stored = stored_by(SampleMode(V, 1.0, 50), teacher.float(), seed)
        chunk = HeadChunk((hidden @ weight.T).float(), torch.zeros(N, dtype=torch.int64), stored=stored)
        values.append(float(Logits().evaluate(chunk, False)[0].sum()))
    error = float(np.std(values)) / math.sqrt(len(values))
    assert error < 0.02 * float(exact)
    assert abs(float(np.mean(values)) - float(exact)) <= 4 * error + 1e-3 * N  # the entropy is kept in float16


@pytest.mark.parametrize("kind", SPREADS)
@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_sampled_value_and_gradient_equal_loops(kind: str, temperature: float) -> None:
    """−Σ share·log p_S − H, by loops over the draws, with autograd for its gradient."""
    hidden, weight, teacher = made(kind)
    stored = stored_by(SampleMode(V, temperature, 20), teacher.float())
    assert isinstance(stored, SampledTokens)
    h, w = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
    expected = []
    for n in range(N):
        log_q = ((w @ h[n]) / temperature).log_softmax(-1)
        mine = [u for u in range(len(stored.token_U)) if int(stored.index_U[u]) == n]
        total = sum(float(stored.share_U[u]) * log_q[int(stored.token_U[u])] for u in mine)
        assert sum(float(stored.share_U[u]) for u in mine) == pytest.approx(1, abs=1e-6)
        expected.append(temperature**2 * (-total - float(stored.entropy_N[n])))
    reference = torch.stack(expected)
    reference.sum().backward()
    values, dh, dw = through_head(Logits(temperature=temperature), hidden, weight, stored)
    torch.testing.assert_close(values, reference.detach(), atol=1e-6, rtol=1e-6)
    for got, wanted in ((dh, h.grad), (dw, w.grad)):
        assert wanted is not None
        torch.testing.assert_close(got, wanted, atol=1e-6, rtol=1e-6)


# --- top tokens and a tail ------------------------------------------------------------------------------------------


def merged(p: Tensor, tokens: list[int]) -> Tensor:
    rest = [j for j in range(len(p)) if j not in tokens]
    return torch.stack([*(p[j] for j in tokens), p[rest].sum()])


@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize(("kind", "temperature"), [("another", 1.0), ("another", 2.0), ("near", 1.0)])
def test_top_tokens_equal_loops_over_buckets(divergence: str, kind: str, temperature: float) -> None:
    hidden, weight, teacher = made(kind)
    stored = stored_by(TopMode(V, temperature, 5), teacher.float())
    assert isinstance(stored, TopTokens)
    h, w = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
    expected = []
    for n in range(N):
        tokens = stored.token_NK[n].tolist()
        kept = torch.tensor([*stored.log_prob_NK[n].tolist(), float(stored.log_tail_N[n])], dtype=torch.float64).exp()
        q = merged(((w @ h[n]) / temperature).softmax(-1), tokens)
        expected.append(temperature**2 * brute.divergence(kept / kept.sum(), q, divergence))
    reference = torch.stack(expected)
    reference.sum().backward()
    term = Logits(divergence=divergence, temperature=temperature)  # type: ignore[arg-type]
    values, dh, dw = through_head(term, hidden, weight, stored)
    torch.testing.assert_close(values, reference.detach(), atol=1e-9, rtol=1e-9)
    for got, wanted in ((dh, h.grad), (dw, w.grad)):
        assert wanted is not None
        torch.testing.assert_close(got, wanted, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_top_tokens_are_a_lower_bound_that_grows_with_them(divergence: str) -> None:
    hidden, weight, teacher = made("another")
    whole = torch.stack(
        [
            brute.divergence(teacher[n].softmax(-1), (weight @ hidden[n]).softmax(-1), divergence).detach()
            for n in range(N)
        ]
    )
    term, last = Logits(divergence=divergence), torch.zeros(N, dtype=torch.float64)  # type: ignore[arg-type]
    for k in (1, 3, 9, 20, V - 1):
        # Not through float16, whose rounding is no part of the bound.
        exact = teacher.log_softmax(-1)
        top = exact.topk(k)
        tail = exact.scatter(1, top.indices, -torch.inf).logsumexp(-1)
        stored = TopTokens(top.indices, top.values, tail, 1.0, V)
        values, _, _ = through_head(term, hidden, weight, stored)
        assert bool((values <= whole + 1e-9).all())
        assert bool((values >= last - 1e-9).all())
        last = values
    torch.testing.assert_close(last, whole, atol=1e-9, rtol=1e-9)


def test_top_tokens_hold_the_mass_outside_them() -> None:
    """A student that agrees on the ratios within the top tokens, and not on their mass, is pushed."""
    teacher = torch.tensor([[2.0, 1.0, 0.0, 0.0, 0.0, 0.0]], dtype=torch.float64)
    stored = stored_by(TopMode(6, 1.0, 2), torch.cat([teacher] * N).float()).of(0, 1)
    student = teacher + torch.tensor([[0.0, 0.0, 3.0, 3.0, 3.0, 3.0]], dtype=torch.float64)
    value, grad = Logits().evaluate(HeadChunk(student, torch.zeros(1, dtype=torch.int64), stored=stored), True)
    assert float(value) > 0.1
    assert grad is not None
    assert bool((grad[0, :2] < 0).all())
    assert bool((grad[0, 2:] > 0).all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("mode", [SampleMode(V, 1.0, 20), TopMode(V, 1.0, 5), TopMode(V, 1.0, 100), FullMode(V, 1.0)])
def test_extremes_stay_finite(mode: Mode, dtype: torch.dtype) -> None:
    """Where the student gives a token of the teacher's no probability, and where the teacher is certain."""
    hidden, weight, teacher = made("one-sided")
    teacher[0] = torch.where(torch.arange(V) == 7, 500.0, -500.0)
    logits = (hidden @ weight.T * 300).to(dtype)
    stored = stored_by(mode, teacher.float())
    value, grad = Logits().evaluate(HeadChunk(logits, torch.zeros(N, dtype=torch.int64), stored=stored), True)
    assert torch.isfinite(value).all()
    assert grad is not None
    assert torch.isfinite(grad).all()
    # KL(certain ‖ q) is −log q of the certain token.
    expected = -logits[0].double().log_softmax(-1)[7]
    assert float(value[0]) == pytest.approx(float(expected), rel=1e-5)


# --- whole distributions --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_whole_distributions_equal_the_live_teacher(divergence: str, temperature: float) -> None:
    """Up to float16, in which a log-probability of about −10 is off by 4·10⁻³."""
    hidden, weight, teacher = made("another")
    stored = stored_by(FullMode(V, temperature), teacher.float())
    assert isinstance(stored, WholeDistributions)
    term = Logits(divergence=divergence, temperature=temperature)  # type: ignore[arg-type]
    values, _, _ = through_head(term, hidden, weight, stored)
    live, _ = term.evaluate(HeadChunk(hidden @ weight.T, torch.zeros(N, dtype=torch.int64), teacher), True)
    torch.testing.assert_close(values, live, rtol=2e-3, atol=2e-3)


# --- what cannot be -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("term", "mode", "words"),
    [
        (Logits(temperature=2.0), SampleMode(V, 1.0, 5), "temperature is 2 and the teacher was stored at 1"),
        (Logits(divergence="jsd"), SampleMode(V, 1.0, 5), "'jsd' cannot be computed from sampled tokens"),
        (Logits(), TopMode(V + 1, 1.0, 5), "stored over 44 tokens and the student's output head has 43"),
    ],
)
def test_what_a_store_cannot_give_is_refused(term: Logits, mode: Mode, words: str) -> None:
    hidden, weight, _ = made("another")
    stored = stored_by(mode, torch.randn(N, mode.vocabulary))
    with pytest.raises(InputError, match=words):
        term.evaluate(HeadChunk(hidden @ weight.T, torch.zeros(N, dtype=torch.int64), stored=stored), True)


def test_padding_of_the_vocabulary_is_in_no_softmax() -> None:
    """A student whose head is longer than the tokenizer: its padding has no gradient and no probability."""
    hidden, weight, teacher = made("another")
    longer = torch.cat([weight, 9 * torch.ones(5, D, dtype=torch.float64)])
    for mode in (SampleMode(V, 1.0, 20), TopMode(V, 1.0, 5), FullMode(V, 1.0)):
        stored = stored_by(mode, teacher.float())
        values, dh, dw = through_head(Logits(), hidden, weight, stored)
        padded_values, padded_dh, padded_dw = through_head(Logits(), hidden, longer, stored)
        torch.testing.assert_close(padded_values, values)
        torch.testing.assert_close(padded_dh, dh)
        torch.testing.assert_close(padded_dw[:V], dw)
        assert not padded_dw[V:].any()
