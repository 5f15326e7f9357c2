"""The processes that share a training run's steps, and the device each computes on.

They are those that `accelerate launch` or `torchrun` started; without either there is one, and
nothing here costs anything. Every process makes the same step of the same people, takes its share
of them, and adds its gradients to the others': all then move their weights alike.
"""

import os
from collections.abc import Iterable
from datetime import timedelta

import torch
from accelerate import PartialState
from accelerate.utils import broadcast, parse_flag_from_env, reduce
from torch import nn

from memory_service.errors import ConfigurationError

LONGEST_WAIT = timedelta(hours=2)
"""The first process measures and saves while the others wait for it."""


class Processes:
    """This process among those of the run; a GPU where there is one, else the CPU."""

    def __init__(self) -> None:
        cpu = parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.cuda.is_available()
        several = int(os.environ.get("WORLD_SIZE", "1")) > 1
        state = PartialState(cpu=cpu, **({"timeout": LONGEST_WAIT} if several else {}))
        self.device: torch.device = state.device
        self.count: int = state.num_processes
        self.index: int = state.process_index

    @property
    def is_first(self) -> bool:
        """Whether this is the one that reports, measures and saves."""
        return self.index == 0

    def share(self, people: int) -> range:
        """Which of a step's people this process computes.

        Raises:
            ConfigurationError: there are more processes than people.
        """
        if people < self.count:
            raise ConfigurationError(
                "phases",
                f"a step has {people} people for {self.count} processes",
                "raise `people`, give more dialogues, or start fewer processes",
            )
        return range(self.index, people, self.count)

    def sums(self, *numbers: float) -> list[float]:
        """Each number, added up over the processes."""
        if self.count == 1:
            return list(numbers)
        mine = torch.tensor(numbers, dtype=torch.float64, device=self.device)
        total: list[float] = reduce(mine, "sum").tolist()
        return total

    def add_gradients(self, module: nn.Module) -> None:
        """Give every process the sum of all processes' gradients."""
        if self.count == 1:
            return
        for parameter in module.parameters():
            mine = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            parameter.grad = reduce(mine, "sum")

    @torch.no_grad()
    def follow_the_first(self, module: nn.Module) -> None:
        """Give every process the first one's weights."""
        if self.count == 1:
            return
        parameters: Iterable[nn.Parameter] = module.parameters()
        for parameter in parameters:
            parameter.copy_(broadcast(parameter.detach().clone(), from_process=0))
