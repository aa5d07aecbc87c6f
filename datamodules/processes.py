"""What the processes of a distributed run tell each other."""

from typing import Any

import torch.distributed as dist


def gather(mine: Any) -> list[Any]:
    """One object of each process, in their order; all of them must call this."""
    if not (dist.is_available() and dist.is_initialized()):
        return [mine]
    everyones: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everyones, mine)
    return everyones
