"""Several processes that share one run's copies: what ``torchrun`` or SLURM started.

Every rank holds a contiguous share of the copies in a Context of its own. Only numbers per copy
travel (energies, flags), so ladders may span ranks, and every rank reaches the same decision from
the same random numbers.
"""

import atexit
import os
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

import numpy as np

from .errors import InputError


@dataclass(frozen=True)
class Ranks:
    """This process among those that share a run.

    Attributes:
        rank: this process, from 0.
        size: number of processes.
        local_rank: this process among those of its machine; the default device index.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @classmethod
    def discover(cls) -> "Ranks":
        """Return the ranks that the launcher set up, or a single process.

        A process group that exists already is used as it is, whatever its backend (gloo, nccl);
        else one of gloo is made from torchrun's environment variables.

        Raises:
            InputError: if the environment is incomplete.
        """
        local = int(os.environ.get("LOCAL_RANK", "0"))
        if dist.is_available() and dist.is_initialized():
            return cls(dist.get_rank(), dist.get_world_size(), local)
        size = int(os.environ.get("WORLD_SIZE", "1"))
        if size == 1:
            return cls()
        missing = [n for n in ("RANK", "MASTER_ADDR", "MASTER_PORT") if n not in os.environ]
        if missing:
            raise InputError(
                f"WORLD_SIZE is {size} but {', '.join(missing)} is not set; start with torchrun"
            )
        dist.init_process_group("gloo")
        # Else its threads may be alive when the interpreter goes, which aborts the process.
        atexit.register(_leave)
        return cls(dist.get_rank(), dist.get_world_size(), local)

    def share(self, copies: int) -> slice:
        """Return this rank's copies.

        Raises:
            InputError: if there are fewer copies than ranks.
        """
        if copies < self.size:
            raise InputError(
                f"{copies} copies cannot be shared by {self.size} ranks; use more copies or "
                "fewer ranks"
            )
        bounds = [copies * k // self.size for k in range(self.size + 1)]
        return slice(bounds[self.rank], bounds[self.rank + 1])

    def gather(self, values: np.ndarray) -> np.ndarray:
        """Return the arrays of all ranks, joined along the first axis, in float64."""
        if self.size == 1:
            return np.asarray(values, dtype=np.float64)
        mine = torch.as_tensor(np.ascontiguousarray(values), dtype=torch.float64).to(_device())
        lengths = [torch.zeros(1, dtype=torch.int64, device=mine.device) for _ in range(self.size)]
        dist.all_gather(lengths, torch.tensor([len(mine)], device=mine.device))
        parts = [mine.new_empty((int(n), *mine.shape[1:])) for n in lengths]
        if len({len(p) for p in parts}) == 1:
            dist.all_gather(parts, mine)
        else:  # all_gather wants equal shapes
            for rank, part in enumerate(parts):
                if rank == self.rank:
                    part.copy_(mine)
                dist.broadcast(part, rank)
        return torch.cat(parts).cpu().numpy()

    def any(self, *flags: bool) -> tuple[bool, ...]:
        """Return for each flag whether any rank raised it."""
        if self.size == 1:
            return flags
        votes = torch.tensor(flags, dtype=torch.int32, device=_device())
        dist.all_reduce(votes, dist.ReduceOp.MAX)
        return tuple(bool(v) for v in votes.tolist())

    def same(self, value: Any) -> Any:
        """Return rank 0's value everywhere."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def wait(self) -> None:
        """Return when every rank has come here."""
        if self.size > 1:
            dist.barrier()


def _leave() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def _device() -> str:
    # nccl moves only what lies on a GPU
    return "cuda" if dist.get_backend() == "nccl" else "cpu"
