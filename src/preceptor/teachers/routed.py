"""Several teachers at once: each row follows the teacher of its route.

Domain Alignment from Expert (arXiv 2406.19112, section 3.2) is this teacher with two routes, an expert for the domain's
rows and the frozen reference for all others.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from preceptor.errors import InputError, did_you_mean
from preceptor.signals import LayerShape, Needs, Signal, TokenBatch
from preceptor.teachers.routing import Observable, Source, teach
from preceptor.teachers.stored import StoredTeacher

if TYPE_CHECKING:
    from preceptor.data.chat import EncodedRow

Share = tuple[Observable, float]


class RoutedTeacher:
    """Sends each row to the teacher, or the weighted teachers, of its route; no teacher sees another's rows.

    Live and stored teachers may be mixed.

    Several teachers of one route weigh the terms: the loss is Σ_i w_i·KL(p_i ‖ p_S), whose gradient for the forward KL
    is that of the KL to the mixture Σ_i w_i·p_i.

    Args:
        routes: by route, a teacher, or (teacher, weight) pairs whose weights sum to 1.
        route_names: the routes' names in the order of `TokenBatch.routes`, as the objective has them.
        default: the teacher of routes that `routes` does not name.

    Raises:
        InputError: for a route that does not exist, weights that are not shares, or no teacher at all.
    """

    def __init__(
        self,
        routes: Mapping[str, Observable | Sequence[Share]],
        *,
        route_names: Sequence[str],
        default: Observable | None = None,
    ) -> None:
        self.route_names = tuple(route_names)
        self._names: dict[int, str] = {}
        self._teachers: dict[str, Observable] = {}
        self._own = tuple(routes)
        self._has_default = default is not None
        table: list[list[Source]] = [[] for _ in self.route_names]
        for route, given in routes.items():
            if route not in self.route_names:
                raise InputError(
                    f"teacher: the route {route!r} has no rows{did_you_mean(route, self.route_names)}; rows' routes "
                    f"are {', '.join(self.route_names)}"
                )
            shares: Sequence[Share] = given if isinstance(given, Sequence) else [(given, 1.0)]
            total = sum(weight for _, weight in shares)
            if abs(total - 1) > 1e-6 or any(weight <= 0 for _, weight in shares):
                raise InputError(
                    f"teacher: the weights of route {route!r} are {[weight for _, weight in shares]}; give weights "
                    "above 0 that sum to 1"
                )
            table[self.route_names.index(route)] = [
                Source(self._named(teacher, route), teacher, weight) for teacher, weight in shares
            ]
        if default is not None:
            source = Source(self._named(default, "default"), default, 1.0)
            table = [sources or [source] for sources in table]
        if not self._teachers:
            raise InputError("teacher: no route has a teacher; give at least one, or a default")
        self._table = table

    def _named(self, teacher: Observable, route: str) -> str:
        """The name under which a teacher's parts go: one name for each, whatever it is called itself."""
        if id(teacher) not in self._names:
            name = teacher.name
            while name in self._teachers:
                name = f"{name}@{route}" if f"{name}@{route}" not in self._teachers else f"{name}'"
            self._names[id(teacher)] = name
            self._teachers[name] = teacher
        return self._names[id(teacher)]

    def __call__(self, batch: TokenBatch, needs: Needs) -> Signal:
        """One part for each teacher that has rows in `batch`."""
        return teach(batch, needs, lambda route: self._table[route], self.route_names)

    def check_rows(self, rows: Iterable[EncodedRow]) -> None:
        """Makes sure that stored teachers have those of `rows` that are theirs to teach; raises InputError."""
        for row in rows:
            for source in self._table[self.route_names.index(row.route)]:
                if isinstance(source.model, StoredTeacher):
                    source.model.check_rows([row])

    def attention_shapes(self, routes: frozenset[int]) -> dict[str, list[LayerShape]]:
        names = {source.name for route in routes for source in self._table[route]}
        return {name: teacher.layer_shapes() for name, teacher in self._teachers.items() if name in names}

    def check_routes(self, route_names: Sequence[str], followed: frozenset[int]) -> None:
        if tuple(route_names) != self.route_names:
            raise InputError(
                f"teacher: its routes are {', '.join(self.route_names)} and the objective's {', '.join(route_names)}; "
                "give both the same names in the same order"
            )
        names = [self.route_names[route] for route in sorted(followed)]
        for route in sorted(followed):
            if not self._table[route]:
                raise InputError(
                    f"teacher: route {self.route_names[route]!r} has no teacher, and a term follows one there; add a "
                    "teacher for it or a default, or name other `routes` in the terms (there are teachers for "
                    f"{', '.join(self._own)})"
                )
        for name in self._own:
            if name not in names:
                raise InputError(
                    f"teacher: no term follows the teacher of route {name!r}; remove it, or name the route in a "
                    "term's `routes`"
                )
        if self._has_default and all(name in self._own for name in names):
            raise InputError("teacher: the default is used by no route; remove it")
