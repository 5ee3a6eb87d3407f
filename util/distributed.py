"""Several processes that train one network: who they are, and what they tell each other.

One process a GPU, started by torchrun, which says in environment variables who is who. Everything here also works for
a process that is alone: it then does nothing, so that the code of the training need not ask.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
import uuid
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from util.errors import EXIT_USER_ERROR, UserError, visible
from util.heartbeat import PATIENCE, Heartbeat

WAIT = timedelta(minutes=30)  # for a process that still decodes the data; a lost one is mostly noticed by its socket
_TOLD = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")

C10D: Any = torch.distributed  # its stores are not in its types

Item = TypeVar("Item")


@dataclass(frozen=True)
class Ranks:
    """The processes of a run.

    Attributes:
        rank: which of them this is, from 0; the first one writes.
        world: how many there are.
    """

    rank: int = 0
    world: int = 1

    @property
    def first(self) -> bool:
        """Whether this process writes the files and speaks to the user."""
        return self.rank == 0

    @property
    def several(self) -> bool:
        """Whether there are others."""
        return self.world > 1

    def share(self, items: Sequence[Item]) -> Sequence[Item]:
        """This process's part of what all of them have: every ``world``-th item."""
        return items[self.rank :: self.world]

    def sum(self, tensor: Tensor) -> Tensor:
        """Add a tensor up over the processes, in place."""
        if self.several:
            torch.distributed.all_reduce(tensor)
        return tensor

    def any(self, flags: Sequence[bool]) -> list[bool]:
        """For each flag, whether it is set in any process; asked on the host, so that no GPU is waited for."""
        if not self.several:
            return list(flags)
        said = torch.tensor(flags, dtype=torch.uint8)
        torch.distributed.all_reduce(said, torch.distributed.ReduceOp.MAX)
        return [bool(flag) for flag in said]

    def gather(self, value: Any) -> list[Any]:
        """The value of every process, in the order of their ranks."""
        if not self.several:
            return [value]
        values: list[Any] = [None] * self.world
        torch.distributed.all_gather_object(values, value)
        return values

    def copy_from_first(self, tensors: Iterable[Tensor]) -> None:
        """Give every process the first one's values, in place."""
        if self.several:
            for tensor in tensors:
                torch.distributed.broadcast(tensor, 0)

    def add_gradients(self, module: nn.Module) -> None:
        """Add the gradients of a small network up over the processes, as one message; a missing one counts as zero."""
        if not self.several:
            return
        parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        whole = self.sum(torch.cat([gradient.reshape(-1) for gradient in gradients]))
        for gradient, part in zip(gradients, whole.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(part.view_as(gradient))

    @contextlib.contextmanager
    def first_before_others(self) -> Iterator[None]:
        """Let the first process through the block before the others begin it: what it leaves on disk they find."""
        if not self.first:
            self.any([False])
        yield
        if self.first:
            self.any([False])

    @contextlib.contextmanager
    def only_first_speaks(self) -> Iterator[None]:
        """Keep back what the other processes print; an error that ends one is printed outside of this block."""
        if self.first:
            yield
            return
        nowhere = Path(os.devnull).open("w")  # noqa: SIM115 - the next line closes it
        with nowhere, contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
            yield


ALONE = Ranks()


def started_by_torchrun() -> bool:
    """Whether this process is one of several that torchrun started."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def local_rank() -> int:
    """Which of this machine's processes this is."""
    return int(os.environ.get("LOCAL_RANK", "0"))


@contextlib.contextmanager
def join_ranks(device: torch.device) -> Iterator[Ranks]:
    """Join the other processes of the run, where torchrun started several, until the block ends.

    NCCL carries what lies on GPUs, gloo what lies on the host.

    Raises:
        UserError: torchrun's variables are incomplete, or the others were not found, or one was lost on the way.
    """
    if not started_by_torchrun():
        yield ALONE
        return
    missing = [name for name in _TOLD if name not in os.environ]
    if missing:
        raise UserError(
            f"WORLD_SIZE is {os.environ['WORLD_SIZE']}, but {', '.join(missing)} not set",
            expected="a start by torchrun, which sets all of them",
            remedy="use torchrun --nproc_per_node N 3TDCFNet_train.py ..., or unset WORLD_SIZE",
        )
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    try:
        shared = _store(rank, world)
        store = C10D.PrefixStore(agree_on_name(shared, rank, world), shared)
        torch.distributed.init_process_group(backend, store=store, rank=rank, world_size=world, timeout=WAIT)
    except (RuntimeError, ValueError) as error:
        raise UserError(
            "the processes of this run did not find each other",
            expected=f"{os.environ['WORLD_SIZE']} processes at {os.environ['MASTER_ADDR']}",
            found=str(error).splitlines()[0],
            remedy="check torchrun's --rdzv_endpoint and that the machines' ports are open to each other; where one is "
            "called by 127.0.0.1, name the network card in GLOO_SOCKET_IFNAME (docs/training.md)",
        ) from None
    ranks = Ranks(torch.distributed.get_rank(), torch.distributed.get_world_size())
    heartbeat = _heartbeat(store, ranks)
    well = False
    try:
        yield ranks
        well = True
    except RuntimeError as error:
        if not says_lost(error):
            raise
        raise lost_error(ranks, str(error) or type(error).__name__) from None
    finally:
        with contextlib.suppress(RuntimeError):
            torch.distributed.destroy_process_group()
        heartbeat.close(well=well)


def _heartbeat(store: Any, ranks: Ranks) -> Heartbeat:
    """What ends this process where another one is lost and the operation that waits for it does not notice."""
    stderr = sys.stderr  # as it is now: later the first process alone may speak

    def end(other: int) -> None:
        error = lost_error(ranks, f"nothing was heard of process {other} for {PATIENCE:.0f} s")
        print(f"error: {visible(str(error))}", file=stderr, flush=True)
        os._exit(EXIT_USER_ERROR)  # the main thread waits where no exception reaches it; files are whole at any moment

    return Heartbeat(store.clone(), ranks.rank, ranks.world, end, PATIENCE)


def _store(rank: int, world: int) -> Any:
    """Where the processes tell each other their addresses: torchrun keeps one, else the first process does."""
    kept_by_torchrun = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    return C10D.TCPStore(
        host, port, world, rank == 0 and not kept_by_torchrun, WAIT, wait_for_workers=False, multi_tenant=True
    )


def agree_on_name(store: Any, rank: int, world: int) -> str:
    """A name that the processes of this start have in common, and no earlier start.

    torchrun keeps its store when it restarts the processes, with the addresses of those that are gone; they would be
    called in vain (pytorch issue 135712). Its count of restarts is each machine's own, so it cannot tell starts apart.
    Here the first process invents a name, and tells it to each of the others until that one has said that it knows it.
    """
    own = uuid.uuid4().hex
    if rank:
        store.set(f"asks/{rank}", own)
        name = str(store.get(f"answer/{own}"), "ascii")
        store.set(f"knows/{name}/{rank}", "")
        return name
    waiting, give_up = set(range(1, world)), time.monotonic() + WAIT.total_seconds()
    while waiting:
        for other in [other for other in waiting if store.check([f"asks/{other}"])]:
            store.set(f"answer/{store.get(f'asks/{other}').decode()}", own)  # it may be of one that is gone
        waiting = {other for other in waiting if not store.check([f"knows/{own}/{other}"])}
        if waiting and time.monotonic() > give_up:
            raise RuntimeError(f"process {min(waiting)} did not come")
        time.sleep(0.02)
    return own


def says_lost(error: RuntimeError) -> bool:
    """Whether an error comes from a process that does not answer any more."""
    words = str(error).lower()
    return isinstance(error, torch.distributed.DistError) or any(
        sign in words for sign in ("gloo", "connection closed", "connection reset", "nccl", "process group")
    )


def lost_error(ranks: Ranks, found: str) -> UserError:
    """What to tell the user when a process of the run was lost."""
    return UserError(
        f"process {ranks.rank} of {ranks.world} has lost one of the others",
        expected="all of them alive until the end of the run",
        found=found.strip().splitlines()[0][:200],
        remedy="see what the lost one printed (killed? out of memory?), then go on with --continue_train on any number "
        "of processes",
    )
