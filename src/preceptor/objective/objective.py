"""A weighted sum of terms, computed inside the student's forward.

Terms return sums over target positions. Dividing by N, the number of target positions of the whole optimiser step,
is the caller's, once: that is what makes accumulation, processes, packing and padding change nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from preceptor.errors import InputError
from preceptor.models.probe import tapped_layers
from preceptor.models.router_taps import RouterShape, RouterTaps, tapped_routers
from preceptor.models.taps import attention_taps, forward_observed, output_head
from preceptor.objective.attention import Attention
from preceptor.objective.inside import StudentObserver
from preceptor.objective.maps import LayerLink, link_layers
from preceptor.objective.router_balance import RouterBalance
from preceptor.objective.terms import HeadTerm, Term
from preceptor.signals import Needs, Signal, Teacher, TokenBatch


@dataclass(frozen=True)
class LossSums:
    """What one forward gave.

    loss: 0-dim, differentiable: the weighted sum of all terms over the batch's target positions.
    sums_TK: float64 [terms, routes], detached, each term's unweighted sum over the rows it works on (attention: already
        divided by H·L; router_balance: the batch's value times each route's target positions).
    targets_K: int64 [routes], target positions of each route.
    expert_load_LE: float64 [sparse layers, experts], how often each expert was chosen; only with router_balance.
    """

    loss: Tensor
    sums_TK: Tensor
    targets_K: Tensor
    expert_load_LE: Tensor | None = None


class Objective:
    """Terms, and what they have been prepared for.

    Args:
        terms: at least one; of one kind several only with routes, and at most one attention and one router_balance.
        route_names: names of the datasets, in the order of the batch's `routes`.
        vocabulary: tokens of the shared tokenizer; logits beyond it are padding. None: what both heads have.

    Raises:
        InputError: for no terms, all weights 0, a term on an unknown route, or two terms of one kind and routes.
    """

    def __init__(
        self, terms: Sequence[Term], *, route_names: Sequence[str] = ("default",), vocabulary: int | None = None
    ) -> None:
        if not any(term.weight > 0 for term in terms):
            raise InputError("objective: no term has a weight above 0; give at least one term to minimise")
        for term in terms:
            unknown = sorted(set(term.routes or ()) - set(route_names))
            if unknown:
                raise InputError(
                    f"objective: {term.name} names the route {unknown[0]!r}; the stage's datasets are "
                    f"{', '.join(route_names)}"
                )
        if sum(isinstance(term, Attention) for term in terms) > 1:
            raise InputError("objective: two attention terms; give one and set its layers and routes")
        if sum(isinstance(term, RouterBalance) for term in terms) > 1:
            raise InputError("objective: two router_balance terms; give one, with the sum of their weights")
        self.terms = tuple(
            sorted(terms, key=lambda term: (not isinstance(term, HeadTerm), isinstance(term, Attention)))
        )
        self.route_names = tuple(route_names)
        self.vocabulary = vocabulary
        self.links: dict[str, dict[int, LayerLink]] = {}
        self.routers: RouterShape | None = None
        self._router_taps = RouterTaps()
        twice = [name for name, count in Counter(self.names).items() if count > 1]
        if twice:
            raise InputError(f"objective: two terms are {twice[0]}; give one, or different routes")

    @property
    def head_terms(self) -> tuple[HeadTerm, ...]:
        return tuple(term for term in self.terms if isinstance(term, HeadTerm))

    @property
    def attention(self) -> Attention | None:
        return next((term for term in self.terms if isinstance(term, Attention)), None)

    @property
    def router_balance(self) -> RouterBalance | None:
        return next((term for term in self.terms if isinstance(term, RouterBalance)), None)

    @property
    def names(self) -> tuple[str, ...]:
        """Names in logs, in the order of `terms` and `LossSums.sums_TK`: head terms, router_balance, attention.

        A kind that is there more than once is told apart by its routes: logits[general], logits[shop].
        """
        kinds = Counter(term.name for term in self.terms)
        return tuple(
            term.name if kinds[term.name] == 1 or not term.routes else f"{term.name}[{'+'.join(term.routes)}]"
            for term in self.terms
        )

    def covers_TK(self) -> Tensor:
        """float64 [terms, routes], on the CPU: 1 where a term works on a dataset's rows, else 0."""
        return torch.stack([term.covers(self.route_names) for term in self.terms])

    def weight_T(self) -> Tensor:
        """float64 [terms], on the CPU."""
        return torch.tensor([term.weight for term in self.terms], dtype=torch.float64)

    def weighted(self, sums_TK: Tensor) -> float:
        """The weighted sum that is minimised, of the terms' sums."""
        return float((sums_TK.sum(1).cpu() * self.weight_T()).sum())

    @property
    def needs_teacher(self) -> bool:
        return any(term.needs_teacher for term in self.terms)

    @property
    def needs(self) -> Needs:
        """What to ask a teacher for."""
        taught = [term for term in self.head_terms if term.needs_teacher]
        return Needs(
            logits=frozenset().union(*(self._routes_of(term) for term in taught)),
            attention=frozenset() if self.attention is None else self._routes_of(self.attention),
            layers={
                teacher: tuple(sorted({link.teacher_layer for link in links.values()}))
                for teacher, links in self.links.items()
            },
        )

    def _routes_of(self, term: Term) -> frozenset[int]:
        return frozenset(i for i, name in enumerate(self.route_names) if term.routes is None or name in term.routes)

    def prepare(
        self, student: nn.Module, teacher: Teacher | None = None, calibration: Iterable[TokenBatch] = ()
    ) -> None:
        """Check that the models allow these terms and choose layer and head maps; call once, before wrapping `student`.

        Raises:
            InputError: no teacher for a term that needs one, an attention that cannot be tapped, a map that does not
                fit, a student without a linear output head, or one without routers to balance.
        """
        output_head(student)
        if self.router_balance is not None:
            self.routers = tapped_routers(student)
        if not self.needs_teacher:
            return
        if teacher is None:
            kinds = sorted({term.name for term in self.terms if term.needs_teacher})
            raise InputError(f"objective: {' and '.join(kinds)} follow a teacher, and none was given; name one")
        followed = [self._routes_of(term) for term in self.terms if term.needs_teacher]
        teacher.check_routes(self.route_names, frozenset().union(*followed))
        if self.attention is not None:
            shapes = tapped_layers(student, name="student")
            routes = self._routes_of(self.attention)
            self.links = link_layers(self.attention, student, shapes, teacher, calibration, routes)

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Open the model's attention and routers to the objective: put the training loop inside."""
        with ExitStack() as stack:
            if self.attention is not None or self.router_balance is not None:
                stack.enter_context(attention_taps())
                stack.enter_context(self._router_taps.open())
            yield

    def __call__(
        self, model: nn.Module, batch: TokenBatch, signal: Signal | None = None, *, student: nn.Module | None = None
    ) -> LossSums:
        """Forward the student on `batch` with all terms inside.

        Args:
            model: the student, as its engine wrapped it.
            batch: one micro-batch on the student's device; it may hold no target at all.
            signal: the teacher's, for the same batch.
            student: the unwrapped transformers or PEFT model, where `model` is a wrapper around it (DDP).

        With an attention or router_balance term, call this and the backward of its result inside
        `with objective.listening():`.
        """
        unwrapped = model if student is None else student
        if self.router_balance is not None:
            assert self.routers is not None, "call Objective.prepare before the first forward"
            self._router_taps.cover(unwrapped)
        observer = StudentObserver(
            batch,
            signal or Signal(),
            head_terms=self.head_terms,
            links=self.links,
            covers_TK=self.covers_TK(),
            weight_T=self.weight_T(),
            vocabulary=self.vocabulary,
            routers=self.routers,
            wants_grad=torch.is_grad_enabled(),
        )
        outputs = forward_observed(model, unwrapped, batch.model_inputs(), observer)
        count_K = torch.bincount(batch.routes[batch.targets.row_N], minlength=len(self.route_names))
        return LossSums(outputs["loss"], observer.sums_TK, count_K, observer.expert_load_LE)
