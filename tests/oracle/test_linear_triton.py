"""Fused kernels at the output head against float64 and against the losses in PyTorch, on a GPU or interpreted."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

import toys
from preceptor.kernels import fused
from preceptor.kernels.choice import Implementation, implementation
from preceptor.kernels.linear_loss import linear_loss
from preceptor.objective import Logits, NextToken, Objective
from preceptor.objective.chunks import HeadLosses, TermWeights
from preceptor.objective.fused_chunks import FusedLosses
from preceptor.objective.terms import HeadTerm
from preceptor.signals import Head, Part
from preceptor.stored_signals import SampledTokens, Stored, TopTokens, WholeDistributions
from preceptor.teachers import ModelTeacher

pytest.importorskip("triton", reason="the kernels are Triton's")
# The same tests on both: in Triton's interpreter where there is no GPU, see conftest.
ON_GPU = torch.cuda.is_available()
pytestmark = [
    *([pytest.mark.gpu] if ON_GPU else []),
    # The interpreter computes branches of `where` that are not taken.
    pytest.mark.filterwarnings("ignore:(divide by zero|invalid value):RuntimeWarning"),
]
DEVICE = torch.device("cuda" if ON_GPU else "cpu")
DIVERGENCES = ("forward_kl", "reverse_kl", "jsd", "skew_kl")
N, V, D = 4, 29, 4  # a block of columns and a rest; chunks of 3 positions and 1


@pytest.fixture
def sizes() -> dict[str, int]:
    """Of blocks, before the tests make them small."""
    from preceptor.kernels import stored_divergence_triton

    return {"BLOCK": stored_divergence_triton.BLOCK, "ENTRIES": stored_divergence_triton.ENTRIES}


@pytest.fixture(autouse=True)
def several_blocks(monkeypatch: pytest.MonkeyPatch, sizes: dict[str, int]) -> None:
    from preceptor.kernels import divergence_triton, stored_divergence_triton

    monkeypatch.setattr(divergence_triton, "BLOCK", 16)
    monkeypatch.setattr(stored_divergence_triton, "BLOCK", 16)
    monkeypatch.setattr(stored_divergence_triton, "ENTRIES", 4)
    if ON_GPU:
        monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", False)


# --- the reference: whole matrices in float64, and autograd ---------------------------------------------------------


def xlogx(p: Tensor, q: Tensor) -> Tensor:
    """Σ p log(p/q), where p is 0 too."""
    return torch.where(p > 0, p * (p.clamp_min(1e-300).log() - q.log()), 0.0).sum(-1)


def distance(p_T: Tensor, p_S: Tensor, term: Logits) -> Tensor:
    if term.divergence == "forward_kl":
        return xlogx(p_T, p_S)
    if term.divergence == "reverse_kl":
        return xlogx(p_S, p_T)
    if term.divergence == "skew_kl":
        return xlogx(p_T, term.alpha * p_T + (1 - term.alpha) * p_S)
    m = term.beta * p_T + (1 - term.beta) * p_S
    return term.beta * xlogx(p_T, m) + (1 - term.beta) * xlogx(p_S, m)


def from_stored(stored: Stored, n: int, p_S: Tensor, term: Logits) -> Tensor:
    if isinstance(stored, WholeDistributions):
        return distance(stored.log_prob_NV[n].double().softmax(-1), p_S, term)
    if isinstance(stored, TopTokens):
        tokens = stored.token_NK[n]
        p_T = torch.cat([stored.log_prob_NK[n], stored.log_tail_N[n, None]]).double().exp()
        other = torch.ones(len(p_S), dtype=torch.bool, device=p_S.device).index_fill(0, tokens, False)
        return distance(p_T / p_T.sum(), torch.cat([p_S[tokens], p_S[other].sum()[None]]), term)
    mine = stored.index_U == n
    return -(stored.share_U[mine].double() * p_S[stored.token_U[mine]].log()).sum() - stored.entropy_N[n].double()


@dataclass(frozen=True)
class Case:
    """One batch at the head: terms, the student, and what its teachers say."""

    terms: Sequence[HeadTerm]
    parts: Sequence[Part]
    hidden: Tensor
    head: Head
    label: Tensor
    route: Tensor
    covers_TK: Tensor
    vocabulary: int | None = None

    def reference(self) -> tuple[Tensor, list[Tensor]]:
        """Values [T, N] and the gradients on hidden states, weight and bias."""
        head = self.head
        h, w, b = (
            None if x is None else x.detach().double().requires_grad_()
            for x in (self.hidden, head.weight_VD, head.bias_V)
        )
        assert h is not None
        assert w is not None
        z = (h @ w.T if b is None else h @ w.T + b) * head.scale
        z = z if head.softcap is None else head.softcap * torch.tanh(z / head.softcap)
        values = [[torch.zeros((), dtype=torch.float64, device=DEVICE)] * N for _ in self.terms]
        spoken = {n: (part, i) for part in self.parts for i, n in enumerate(part.targets.tolist())}
        for t, term in enumerate(self.terms):
            for n in range(N):
                part, i = spoken.get(n, (None, 0))
                share = 1.0 if part is None else part.weight
                if isinstance(term, NextToken):
                    values[t][n] = -share * z[n].log_softmax(-1)[self.label[n]]
                elif part is not None:
                    assert isinstance(term, Logits)
                    values[t][n] = share * term.temperature**2 * self.divergence(term, part, i, z[n])
        value_TN = torch.stack([torch.stack(row) for row in values])
        weight = torch.tensor([term.weight for term in self.terms], dtype=torch.float64)
        weight_TN = (self.covers_TK * weight[:, None]).to(DEVICE)[:, self.route]
        (value_TN * weight_TN).sum().backward()
        return value_TN.detach(), [x.grad for x in (h, w, b) if x is not None and x.grad is not None]

    def divergence(self, term: Logits, part: Part, i: int, z: Tensor) -> Tensor:
        if part.stored is not None:
            tokens = part.stored.vocabulary
            return from_stored(part.stored, i, (z[:tokens] / term.temperature).softmax(-1), term)
        head = part.head
        assert head is not None
        assert part.hidden_ND is not None
        tokens = min(V, len(head.weight_VD), self.vocabulary or V)
        # The matmul rounds to the head's dtype; after that all is float64.
        t = torch.nn.functional.linear(part.hidden_ND, head.weight_VD, head.bias_V)[i, :tokens].double() * head.scale
        t = t if head.softcap is None else head.softcap * torch.tanh(t / head.softcap)
        return distance((t / term.temperature).softmax(-1), (z[:tokens] / term.temperature).softmax(-1), term)

    def losses(self, wants_grad: bool = True) -> HeadLosses:
        weight_T = torch.tensor([term.weight for term in self.terms], dtype=torch.float64)
        weights = TermWeights.of(self.covers_TK, weight_T, wants_grad=wants_grad, device=DEVICE)
        return HeadLosses(self.terms, self.parts, self.label, self.route, weights=weights, vocabulary=self.vocabulary)

    def run(self, name: Implementation, chunk: int = 3, *, wants_grad: bool = True) -> tuple[Tensor, list[Tensor]]:
        """The same by the package, in Triton or in PyTorch."""
        losses = self.losses(wants_grad)
        leaves = [
            None if x is None else x.detach().clone().requires_grad_(wants_grad)
            for x in (self.hidden, self.head.weight_VD, self.head.bias_V)
        ]
        h, w, b = leaves
        assert h is not None
        assert w is not None
        head = replace(self.head, weight_VD=w, bias_V=b)
        with implementation(name):
            anchor, values = linear_loss(
                h, head, losses, len(self.terms), fused=FusedLosses.of(losses), chunk_elements=chunk * V
            )
        if wants_grad:
            anchor.backward()
        return values.double(), [x.grad.double() for x in leaves if x is not None and x.grad is not None]


def case(
    *terms: HeadTerm,
    tokens: int = V,
    bias: bool = False,
    scale: float = 1.0,
    softcap: float | None = None,
    dtype: torch.dtype = torch.float32,
    spread: float = 1.0,
    excluded: int | None = None,
    vocabulary: int | None = None,
) -> Case:
    """A student and one live teacher, whose distance is `spread`, over `tokens` tokens."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    hidden, weight, bias_V = random(N, D), random(V, D), random(V) if bias else None
    theirs = weight[:tokens] + spread * random(tokens, D)
    bias_T = None
    if excluded is not None:
        bias_T = torch.zeros(tokens, dtype=torch.float64)
        bias_T[excluded] = -torch.inf
    label = torch.randint(0, V, (N,), generator=generator)
    label[3] = V - 1  # a token that a shorter teacher does not have

    def cast(x: Tensor | None) -> Tensor | None:
        return None if x is None else x.to(DEVICE, dtype)

    teacher_head = Head(theirs.to(DEVICE, dtype), cast(bias_T), scale, softcap)
    part = Part(None, torch.arange(N, device=DEVICE), hidden_ND=hidden.to(DEVICE, dtype), head=teacher_head)
    return Case(
        terms,
        [part],
        hidden.to(DEVICE, dtype),
        Head(weight.to(DEVICE, dtype), cast(bias_V), scale, softcap),
        label.to(DEVICE),
        torch.zeros(N, dtype=torch.int64, device=DEVICE),
        torch.ones(len(terms), 1, dtype=torch.float64),
        vocabulary,
    )


def relative(got: Tensor, wanted: Tensor) -> float:
    return float((got - wanted).norm() / wanted.norm().clamp_min(1e-30))


def check(case: Case, value: float = 1e-5, gradient: float = 1e-5) -> None:
    """Against float64, and against the same losses in PyTorch."""
    values, grads = case.run("triton")
    for expected, expected_grads in (case.reference(), case.run("torch")):
        torch.testing.assert_close(values, expected, atol=value, rtol=value)
        for got, wanted in zip(grads, expected_grads, strict=True):
            assert relative(got, wanted) <= gradient


# --- a live teacher -------------------------------------------------------------------------------------------------


def logits(divergence: str, **options: float) -> Logits:
    return Logits(divergence=divergence, beta=0.3, alpha=0.2, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_divergence(divergence: str) -> None:
    check(case(logits(divergence)))


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_everything_about_the_head_at_once(divergence: str) -> None:
    """A temperature, cross-entropy beside, weights, a shorter teacher, bias, scale and soft-cap."""
    check(
        case(
            logits(divergence, temperature=2.5, weight=0.7),
            NextToken(weight=0.3),
            tokens=25,
            bias=True,
            scale=0.7,
            softcap=5.0,
        )
    )


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_cross_entropy_in_the_same_softmax(divergence: str) -> None:
    check(case(logits(divergence), NextToken(weight=2.0)))


def test_cross_entropy_alone() -> None:
    check(replace(case(NextToken()), parts=[]))
    check(case(NextToken()))


@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("spread", [0.01, 30.0])
def test_a_near_and_a_one_sided_teacher(divergence: str, spread: float) -> None:
    """Near convergence a gradient is a small difference; far off, probabilities underflow."""
    if divergence == "reverse_kl" and spread > 1:
        return  # itself infinite in the reference
    check(case(logits(divergence), spread=spread), gradient=2e-4 if spread < 1 else 1e-5)


@pytest.mark.parametrize("divergence", [name for name in DIVERGENCES if name != "reverse_kl"])
def test_a_token_the_teacher_excludes(divergence: str) -> None:
    check(case(logits(divergence, temperature=0.5), excluded=5))


def test_a_vocabulary_that_both_heads_pad() -> None:
    check(case(Logits(), NextToken(), tokens=27, vocabulary=13))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_half_precision(divergence: str, dtype: torch.dtype) -> None:
    """Scores and gradients are rounded to the matmul's dtype once each, like in PyTorch's losses."""
    made = case(logits(divergence, temperature=2.0), NextToken(weight=0.5), tokens=25, bias=True, dtype=dtype)
    values, grads = made.run("triton")
    expected, expected_grads = made.run("torch")
    torch.testing.assert_close(values, expected, atol=1e-5, rtol=1e-5)
    unit = torch.finfo(dtype).eps
    for got, wanted in zip(grads, expected_grads, strict=True):
        assert relative(got, wanted) <= unit
    exact, exact_grads = made.reference()
    torch.testing.assert_close(values, exact, atol=8 * unit, rtol=8 * unit)
    for got, wanted in zip(grads, exact_grads, strict=True):
        assert relative(got, wanted) <= 4 * unit


def test_weights_of_routes_terms_of_one_kind_and_terms_of_no_weight() -> None:
    made = case(Logits(weight=0.5), Logits(weight=2.0), NextToken(weight=0.0), NextToken(weight=0.25))
    covers = torch.tensor([[1, 0, 1], [0, 1, 0], [1, 1, 1], [0, 0, 1]], dtype=torch.float64)
    check(replace(made, route=torch.arange(N, device=DEVICE) % 3, covers_TK=covers))


def test_nothing_to_minimise_gives_values_and_no_gradient() -> None:
    made = case(Logits(weight=0.0), NextToken(weight=0.0))
    values, _ = made.run("triton")
    torch.testing.assert_close(values, made.reference()[0], atol=1e-5, rtol=1e-5)
    twin = FusedLosses.of(made.losses())
    assert twin is not None
    scores = made.head.scores(made.hidden)
    assert twin(scores, made.head, slice(0, N), True)[1] is None
    for divergence in DIVERGENCES:
        made = case(logits(divergence), NextToken())
        values, grads = made.run("triton", wants_grad=False)
        assert not grads
        torch.testing.assert_close(values, made.reference()[0], atol=1e-5, rtol=1e-5)


def test_no_position_at_all() -> None:
    made = case(Logits(), NextToken())
    empty = replace(made, parts=[], hidden=made.hidden[:0], label=made.label[:0], route=made.route[:0])
    values, grads = empty.run("triton")
    assert values.shape == (2, 0)
    assert not grads[1].any()


# --- stored teachers ------------------------------------------------------------------------------------------------


def stored(kind: str, teacher_NV: Tensor, temperature: float = 1.0) -> Stored:
    """What a store would keep of these logits, without its rounding."""
    log_p = (teacher_NV.double() / temperature).log_softmax(-1)
    n, tokens = log_p.shape
    if kind == "full":
        return WholeDistributions(log_p.half(), temperature)
    if kind == "topk":
        top = log_p.topk(6)
        tail = log_p.scatter(1, top.indices, -torch.inf).logsumexp(-1)
        return TopTokens(top.indices, top.values.float(), tail.float(), temperature, tokens)
    generator = torch.Generator().manual_seed(1)
    drawn = torch.multinomial(log_p.cpu().exp(), 9, replacement=True, generator=generator)
    found = [row.unique(return_counts=True) for row in drawn]
    counts = torch.tensor([len(token) for token, _ in found])
    return SampledTokens(
        torch.repeat_interleave(torch.arange(n), counts).to(DEVICE),
        torch.cat([token for token, _ in found]).to(DEVICE),
        torch.cat([count / 9 for _, count in found]).to(DEVICE),
        -(log_p.exp() * log_p).sum(-1).float(),
        torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)]),
        temperature,
        tokens,
    )


def of_store(made: Case, kind: str, temperature: float) -> Case:
    part = made.parts[0]
    assert part.head is not None
    assert part.hidden_ND is not None
    said = stored(kind, part.head.logits(part.hidden_ND).float(), temperature)
    return replace(made, parts=[replace(part, head=None, hidden_ND=None, stored=said)])


STORES = [("sample", "forward_kl"), *(("topk", name) for name in DIVERGENCES), ("full", "jsd")]


@pytest.mark.parametrize(("kind", "divergence"), STORES)
def test_stored_teacher(kind: str, divergence: str) -> None:
    check(of_store(case(logits(divergence)), kind, 1.0))


@pytest.mark.parametrize(("kind", "divergence"), STORES)
def test_stored_teacher_and_everything_about_the_head(kind: str, divergence: str) -> None:
    terms = (logits(divergence, temperature=2.0, weight=0.7), NextToken(weight=0.3))
    check(of_store(case(*terms, tokens=25, bias=True, scale=0.7, softcap=5.0), kind, 2.0))


@pytest.mark.parametrize("kind", ["sample", "topk"])
def test_stored_teacher_in_half_precision(kind: str) -> None:
    made = of_store(case(Logits(), NextToken(weight=0.5), dtype=torch.bfloat16), kind, 1.0)
    values, grads = made.run("triton")
    expected, expected_grads = made.run("torch")
    torch.testing.assert_close(values, expected, atol=1e-5, rtol=1e-5)
    for got, wanted in zip(grads, expected_grads, strict=True):
        assert relative(got, wanted) <= torch.finfo(torch.bfloat16).eps


def test_a_top_token_without_probability_and_no_tail() -> None:
    made = of_store(case(Logits(), spread=60.0), "topk", 1.0)
    said = made.parts[0].stored
    assert isinstance(said, TopTokens)
    said.log_tail_N[2] = -torch.inf
    said.log_prob_NK[2, 3:] = -torch.inf
    check(made)


def test_values_alone_from_stores() -> None:
    for kind in ("sample", "topk"):
        made = of_store(case(Logits(), NextToken()), kind, 1.0)
        values, _ = made.run("triton", wants_grad=False)
        torch.testing.assert_close(values, made.reference()[0], atol=1e-5, rtol=1e-5)


def test_teachers_of_all_kinds_in_one_chunk() -> None:
    """Chunks are cut where the teacher changes; positions without one have their cross-entropy alone."""
    made = case(Logits(weight=0.6), NextToken(weight=0.4))
    live = made.parts[0]
    assert live.hidden_ND is not None
    parts, start = [], 0
    for kind, count in (("live", 1), ("sample", 1), ("topk", 1)):
        some = torch.arange(start, start + count, device=DEVICE)
        part = replace(live, targets=some, hidden_ND=live.hidden_ND[some], weight=0.5 + 0.1 * start)
        if kind != "live":
            assert part.head is not None
            assert part.hidden_ND is not None
            part = replace(part, stored=stored(kind, part.head.logits(part.hidden_ND)), hidden_ND=None, head=None)
        parts.append(part)
        start += count
    covers = torch.tensor([[1.0, 0.0], [1.0, 1.0]], dtype=torch.float64)
    route = (torch.arange(N, device=DEVICE) >= start).long()
    check(replace(made, parts=parts, route=route, covers_TK=covers))
    # Without the cross-entropy, the last positions have neither value nor gradient.
    check(replace(made, terms=made.terms[:1], parts=parts, route=route, covers_TK=covers[:1]))


def test_blocks_of_the_size_they_have_in_use(monkeypatch: pytest.MonkeyPatch, sizes: dict[str, int]) -> None:
    from preceptor.kernels import divergence_triton, stored_divergence_triton

    monkeypatch.setitem(globals(), "V", sizes["BLOCK"] + 37)
    monkeypatch.setattr(divergence_triton, "BLOCK", sizes["BLOCK"])
    monkeypatch.setattr(stored_divergence_triton, "BLOCK", sizes["BLOCK"])
    monkeypatch.setattr(stored_divergence_triton, "ENTRIES", sizes["ENTRIES"])
    made = case(Logits(temperature=2.0), NextToken(weight=0.5), tokens=sizes["BLOCK"] + 30)
    check(made)
    for kind in ("sample", "topk"):
        check(of_store(made, kind, 2.0))


def test_no_two_warps_hold_one_score() -> None:
    """On a device, one of them could read what the other has overwritten."""
    from preceptor.kernels.divergence_triton import WARPS, warps

    assert [warps(lanes) for lanes in (1, 16, 32, 64, 128, 256, 2048)] == [1, 1, 1, 2, 4, 8, 8]
    assert WARPS == 8


# --- when they are used ---------------------------------------------------------------------------------------------


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the fused entry points, as they are called."""
    called: list[str] = []

    def counted(name: str) -> Callable[..., Tensor]:
        inner = getattr(fused, name)
        return lambda *args: (called.append(name), inner(*args))[1]

    for name in ("untaught", "from_teacher", "from_stored"):
        monkeypatch.setattr(fused, name, counted(name))
    return called


def test_they_are_used_where_all_terms_have_a_twin(launches: list[str]) -> None:
    case(Logits(), NextToken()).run("triton", chunk=N)
    assert launches == ["from_teacher"]
    case(Logits(), NextToken()).run("torch")
    case(Logits(), Logits(temperature=2.0)).run("triton")  # two softmaxes of each row
    assert launches == ["from_teacher"]


def test_float64_stays_with_pytorch(launches: list[str]) -> None:
    made = case(Logits(), dtype=torch.float64)
    values, _ = made.run("triton")
    assert not launches
    torch.testing.assert_close(values, made.reference()[0], atol=1e-12, rtol=1e-12)


def test_a_store_at_another_temperature_is_refused_by_both() -> None:
    made = of_store(case(Logits(temperature=2.0)), "topk", 1.0)
    for name in ("torch", "triton"):
        with pytest.raises(ValueError, match="temperature is 2 and the teacher was stored at 1"):
            made.run(name)


def test_an_objective_with_a_model(launches: list[str]) -> None:
    """From token ids to every parameter's gradient, padding and prompts included."""
    batch = toys.batch([[row] for row in toys.rows(0, [6, 4], [2, 3])]).to(DEVICE)

    def run(name: Implementation) -> tuple[Tensor, dict[str, Tensor]]:
        student, teacher = toys.llama(0).to(DEVICE), ModelTeacher(toys.llama(1).to(DEVICE))
        objective = Objective([Logits(temperature=2.0), NextToken(weight=0.5)])
        objective.prepare(student, teacher)
        with implementation(name):
            sums = objective(student, batch, teacher(batch, objective.needs))
        sums.loss.backward()
        return sums.sums_TK, {key: p.grad for key, p in student.named_parameters() if p.grad is not None}

    sums_TK, gradients = run("triton")
    assert launches == ["from_teacher"]
    expected_TK, expected = run("torch")
    torch.testing.assert_close(sums_TK, expected_TK, rtol=1e-6, atol=0)
    assert gradients.keys() == expected.keys()
    for key, wanted in expected.items():
        assert relative(gradients[key], wanted) <= 1e-5, key


# --- compiled -------------------------------------------------------------------------------------------------------

TRANSLATE = """
import itertools, triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton._C.libtriton import ir
from preceptor.kernels import divergence_triton, stored_divergence_triton

target = GPUTarget("cuda", 90, 32)
backend = triton.compiler.make_backend(target)
options = backend.parse_options({})
specs = {spec.kernel: spec for module in (divergence_triton, stored_divergence_triton) for spec in module.ahead()}
for spec in specs.values():
    switches = [name for name, value in spec.constexprs.items() if isinstance(value, bool)]
    for KIND, *values in itertools.product(range(5), *[(False, True)] * len(switches)):
        chosen = {**spec.constexprs, **dict(zip(switches, values)), "KIND": KIND}
        if (KIND == 0 and ("SAMPLED" in chosen or chosen["ONE_SOFTMAX"])) or sum(values) not in (0, 1, len(values)):
            continue
        context = ir.context()
        ir.load_dialects(context)
        backend.load_dialects(context)
        source = ASTSource(spec.kernel, dict(spec.signature), chosen, spec.attributes)
        source.make_ir(target, options, backend.get_codegen_implementation(options), backend.get_module_map(), context)
        print(spec.name, chosen)
"""


@pytest.mark.skipif(ON_GPU, reason="there they have been compiled")
def test_kernels_are_triton_and_not_only_python() -> None:
    """The interpreter takes what the compiler refuses; with each switch alone, with none and with all."""
    found = subprocess.run(
        [sys.executable, "-c", TRANSLATE],
        env={name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 0, found.stderr[-2000:]
    assert len(found.stdout.splitlines()) > 50
