"""Training on several processes with one script: `torchrun --nproc-per-node 4 --module unstir train DATA …`.

What image n of a run is (row, noise, level, dropped condition) is a function of (seed, n) alone (`order`). So process r of W
takes images n + rB/W … n + (r+1)B/W − 1 of the batch, the mean of the W gradients is the gradient of the batch, and a run
may be resumed with another W. Two ways to share the work:

    ddp    every process keeps all weights; gradients are averaged (DistributedDataParallel)
    fsdp   weights, moments and averages are cut in W parts and gathered where they are used (FSDP2, `fully_shard`)

Checkpoints hold whole tensors in safetensors either way, so that any number of processes can go on from them.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from .._files import atomic_folder, write_tensors

STRATEGIES = ("ddp", "fsdp")


@dataclass(frozen=True)
class World:
    """The processes of a run: this one's number and how many there are."""

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """Is this the process that writes files and speaks?"""
        return self.rank == 0

    def part(self, images: range) -> slice:
        """This process's part of a batch. ValueError unless the batch can be shared evenly."""
        if len(images) % self.size:
            raise ValueError(f"batch={len(images)} must be a multiple of the {self.size} processes that share it")
        share = len(images) // self.size
        return slice(self.rank * share, (self.rank + 1) * share)

    def mean(self, value: Tensor) -> Tensor:
        """The mean of a tensor over the processes."""
        if self.size == 1:
            return value
        total = value.detach().clone()
        dist.all_reduce(total)
        return total / self.size

    def mean_gradients(self, module: nn.Module) -> None:
        """Puts the mean of the gradients over the processes in their place. A weight that has none anywhere keeps none."""
        parameters = [p for p in module.parameters() if p.requires_grad]
        if self.size == 1 or not parameters:
            return
        found = self.mean(torch.tensor([float(p.grad is not None) for p in parameters], device=parameters[0].device))
        for parameter, share in zip(parameters, found.tolist(), strict=True):
            if share:
                parameter.grad = self.mean(parameter.grad if parameter.grad is not None else torch.zeros_like(parameter))

    def wait(self) -> None:
        """Returns when every process has come here."""
        if self.size > 1:
            dist.barrier()

    @contextmanager
    def folder(self, path: Path) -> Iterator[Path]:
        """`atomic_folder`, made by the first process and shared by all."""
        with atomic_folder(path) if self.first else nullcontext(path) as own:
            names = [str(own)]
            if self.size > 1:
                dist.broadcast_object_list(names)
            yield Path(names[0])
            self.wait()  # nobody leaves, and the folder is not renamed, before all have written
        self.wait()


@contextmanager
def world(device: torch.device) -> Iterator[World]:
    """The processes that `torchrun` started, joined for the length of the block; without torchrun, one.

    A group that the caller has set up already is used and left alone.
    """
    own = not dist.is_initialized() and int(os.environ.get("WORLD_SIZE", "1")) > 1
    if own:
        if device.type == "cuda":
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield World(dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else World()
        if own:
            dist.barrier()  # a process that leaves early makes the others' threads abort as they are taken down
    finally:
        if own:
            gc.collect()  # what still refers to the group
            dist.destroy_process_group()


def share(
    strategy: str, loss: nn.Module, networks: list[nn.Module], where: World, device: torch.device, unused: bool = False
) -> nn.Module:
    """The module to call instead of `loss`; `networks`: the network it trains, and its averages.

    unused: some weights may be without a gradient (outputs that no loss is made of).

    With fsdp the networks are cut in place: call this before an optimiser is made of their parameters.
    """
    if strategy not in STRATEGIES:
        raise ValueError(f"strategy={strategy!r} is unknown; one of {', '.join(STRATEGIES)}")
    if where.size == 1:
        return loss
    if strategy == "ddp":
        own = [device.index] if device.type == "cuda" else None
        return nn.parallel.DistributedDataParallel(loss, device_ids=own, find_unused_parameters=unused)
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(device.type, (where.size,))
    for network in networks:
        for block in _blocks(network):
            fully_shard(block, mesh=mesh)
        fully_shard(network, mesh=mesh)
    return loss


def _blocks(network: nn.Module) -> list[nn.Module]:
    """The layers that are gathered one at a time: members of the network's lists of modules (blocks of a UNet, of a DiT)."""
    return [m for child in network.children() if isinstance(child, nn.ModuleList) for m in child]


def local(tensor: Tensor) -> Tensor:
    """This process's part of a tensor that is cut in parts; any other tensor as it is."""
    return tensor.to_local() if _cut(tensor) else tensor  # type: ignore[attr-defined]


def whole(tensor: Tensor) -> Tensor:
    """The whole of a tensor that is cut in parts (every process must ask); any other tensor as it is."""
    return tensor.full_tensor() if _cut(tensor) else tensor  # type: ignore[attr-defined]


def gather(network: nn.Module) -> None:
    """Puts whole tensors in the place of those that are cut in parts, so that the network runs in one process again."""
    for module in network.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if _cut(parameter):
                setattr(module, name, nn.Parameter(whole(parameter.detach()), requires_grad=parameter.requires_grad))


def write(path: Path, tensors: Mapping[str, Tensor], where: World) -> None:
    """Writes whole tensors to a safetensors file: every process calls it, the first holds and writes them.

    (torch.distributed.checkpoint would write the shards where they lie, but of torch 2.13 it joins safetensors shards
    wrongly: scalars, such as the step counters of the moments, come out as 0.)
    """
    gathered = {}
    for name, tensor in tensors.items():
        full = whole(tensor.detach())
        if where.first:
            gathered[name] = full.cpu()
    if where.first:
        write_tensors(path, gathered)
    where.wait()


def shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every tensor of a safetensors file. ValueError, in one line, if it is missing or damaged."""
    if not path.is_file():
        raise ValueError(f"{path} is missing")
    try:
        with safe_open(str(path), "pt") as file:  # type: ignore[no-untyped-call]
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{path} is not a valid safetensors file: {error}") from None


def read_into(path: Path, wanted: Mapping[str, Tensor], copy: Callable[[str, Tensor], Any]) -> None:
    """copy(name, tensor) for every name of `wanted`, read one at a time and cut as the wanted tensor is."""
    from torch.distributed.tensor import distribute_tensor

    with safe_open(str(path), "pt") as file:  # type: ignore[no-untyped-call]
        for name, like in wanted.items():
            tensor = file.get_tensor(name)
            if _cut(like):
                mesh, placements = like.device_mesh, like.placements  # type: ignore[attr-defined]
                tensor = distribute_tensor(tensor.to(mesh.device_type), mesh, placements, src_data_rank=None)
            copy(name, tensor)


def _cut(tensor: Any) -> bool:
    return hasattr(tensor, "to_local")
