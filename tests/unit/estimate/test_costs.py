"""FLOPs and traffic of a few operations, by hand."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from preceptor.estimate.costs import Cost, Rates
from preceptor.estimate.simulation import Simulation


def test_a_linear_layer_forward_and_back() -> None:
    simulation = Simulation()
    x, w = simulation.empty((300, 400), torch.float32), simulation.empty((500, 400), torch.float32).requires_grad_()
    with simulation:
        with simulation.phase("forward"):
            out = F.linear(x, w)
        with simulation.phase("backward"):
            out.backward(out)
    forward, backward = (simulation.costs.phases[name] for name in ("forward", "backward"))
    assert forward.total_flops == backward.total_flops == 2 * 300 * 400 * 500
    assert forward.bytes == 4 * (300 * 400 + 500 * 400 + 300 * 500)


@pytest.mark.parametrize("causal", [False, True])
def test_attention_on_a_cpu(causal: bool) -> None:
    simulation = Simulation()
    q, k, v = (simulation.empty((2, 4, 256, 64), torch.float32).requires_grad_() for _ in range(3))
    with simulation:
        with simulation.phase("forward"):
            out = F.scaled_dot_product_attention(q, k, v, is_causal=causal)
        with simulation.phase("backward"):
            out.sum().backward()
    product = 2 * 2 * 4 * 256 * 256 * 64 * (0.5 if causal else 1)
    assert simulation.costs.phases["forward"].total_flops == 2 * product
    assert simulation.costs.phases["backward"].total_flops == 5 * product


def test_views_cost_nothing_and_blocks_count_as_often_as_they_stand_for() -> None:
    simulation = Simulation()
    x = simulation.empty((300, 400), torch.float32)
    with simulation, simulation.phase("views"):
        x.view(400, 300).T[:10]
    assert "views" not in simulation.costs.phases
    with simulation, simulation.phase("blocks"), simulation.costs.times(7.0):
        x.mul_(2.0)
    assert simulation.costs.phases["blocks"].bytes == 7 * 4 * 300 * 400


def test_an_operation_takes_the_longer_of_arithmetic_and_traffic() -> None:
    cost = Cost(items=[(torch.float32, 100.0, 10.0), (torch.float32, 0.0, 60.0), (torch.bfloat16, 100.0, 0.0)])
    rates = Rates({torch.float32: 10.0}, 20.0, 50.0)
    assert cost.seconds(rates) == 10.0 + 3.0 + 2.0
