"""A test's work on two gloo processes, under the engines it may run on."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable
from contextlib import nullcontext
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn

Accumulate = Callable[[bool], Any]
"""Given whether a micro-batch is the step's last: the context in which it is run."""


def on_two_ranks(work: Callable[[int, Path], None], folder: Path) -> Path:
    """Runs `work(rank, folder)` in two processes; nothing in it may wait for longer than a minute."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = int(taken.getsockname()[1])
    mp.spawn(_rank, args=(work, folder, port), nprocs=2)
    return folder


def _rank(rank: int, work: Callable[[int, Path], None], folder: Path, port: int) -> None:
    os.environ.update(
        RANK=str(rank), WORLD_SIZE="2", LOCAL_RANK=str(rank), LOCAL_WORLD_SIZE="2", OMP_NUM_THREADS="1",
        MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port),
    )  # fmt: skip
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=2, timeout=timedelta(seconds=60))
    work(rank, folder)
    dist.barrier()
    dist.destroy_process_group()
    # What engines still hold of a group is torn down with the interpreter, where gloo's threads have aborted a
    # process whose work was done ("terminate called without an active exception", one test run in dozens).
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def engine(name: str, model: nn.Module) -> tuple[nn.Module, Accumulate]:
    """`model` under DDP or FSDP2, and how its micro-batches are accumulated."""
    if name == "ddp":
        parallel = nn.parallel.DistributedDataParallel(model)
        return parallel, lambda last: nullcontext() if last else parallel.no_sync()
    sharded = shard(model)

    def accumulate(last: bool) -> Any:
        sharded.set_requires_gradient_sync(last)  # type: ignore[operator]
        return nullcontext()

    return sharded, accumulate


def shard(model: nn.Module) -> nn.Module:
    """`model`, perhaps with adapters, as FSDP2 shards it: by layer, and the head alone unless it is tied."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import DTensor

    mesh = init_device_mesh("cpu", (2,))
    inner: Any = model.get_base_model() if hasattr(model, "get_base_model") else model  # type: ignore[operator]
    for layer in inner.model.layers:
        fully_shard(layer, mesh=mesh)
    if not inner.config.tie_word_embeddings:
        # Its weight then exists only inside its own forward.
        fully_shard(inner.lm_head, mesh=mesh)
    sharded = fully_shard(model, mesh=mesh)
    assert all(isinstance(p, DTensor) for p in sharded.parameters()), "FSDP2 did not shard"
    return sharded


def whole(model: nn.Module) -> dict[str, Tensor]:
    """Copies of all parameters, gathered where they are sharded."""
    return {
        name: (p.detach().full_tensor() if hasattr(p, "full_tensor") else p.detach()).clone()
        for name, p in model.named_parameters()
    }
