"""One batch of a `store` stage, simulated: the teacher's forward, and a chunk of logits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from preceptor.data.collator import Collator
from preceptor.estimate.costs import Costs
from preceptor.estimate.models import meta_model, with_adapter
from preceptor.estimate.setups import StoreSetup
from preceptor.estimate.simulation import Simulation
from preceptor.estimate.storages import SIGNALS, TEACHER_WEIGHTS, WORKSPACES, Storages
from preceptor.kernels.chunk_rows import CHUNK_ELEMENTS
from preceptor.signals import TokenBatch, Wanted
from preceptor.teachers import ModelTeacher


@dataclass(frozen=True)
class SimulatedStoring:
    """What one batch was found to hold and to do; costs have the phases `teacher` and `storing`."""

    storages: Storages
    costs: Costs
    tokens: int


@torch.no_grad()
def simulate_storing(setup: StoreSetup) -> SimulatedStoring:
    """Run one batch of `setup` without memory.

    Raises:
        Exception: of any class, where the model does what cannot be simulated; callers say so to the user.
    """
    simulation = Simulation()
    storages = simulation.storages
    model: Any = meta_model(setup.teacher)
    if setup.adapter is not None:
        model = with_adapter(model, setup.adapter, "teacher").get_base_model()
    teacher = ModelTeacher(simulation.adopt(model))
    with simulation:
        storages.label([*model.parameters(), *model.buffers()], TEACHER_WEIGHTS)
        routes = sorted({row.route for row in setup.batch})
        batch = TokenBatch.from_inputs(Collator(setup.pad_token_id, route_names=routes)(setup.batch))
        with simulation.phase("teacher"):
            part = teacher.observe(batch, Wanted(logits=True))
        storages.label([part.hidden_ND], SIGNALS)
        assert part.head is not None
        assert part.hidden_ND is not None
        head = part.head.first(min(setup.vocabulary, len(part.head.weight_VD)))
        chunk = max(1, min(CHUNK_ELEMENTS // setup.vocabulary, len(part.hidden_ND)))
        again = simulation.costs.times(len(part.hidden_ND) / chunk)
        with simulation.phase("storing"), storages.making(WORKSPACES), again:
            # Every mode makes probabilities of the logits, and one more tensor of their size on the way.
            head.logits(part.hidden_ND[:chunk]).double().softmax(-1)
        return SimulatedStoring(storages, simulation.costs, batch.input_ids.numel())
