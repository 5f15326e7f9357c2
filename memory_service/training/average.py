"""An average of the weights on their way, which is better than where they are.

A running mean of the generator costs nothing and helps on people never met
(docs/decisions/0011); training goes on with the weights themselves.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

from memory_service.generator.generator import Generator


class RunningMean:
    """The exponential running mean of a generator's weights; each step is worth 1 - decay.

    Early on the decay is lower, (1 + n) / (10 + n) after n steps, so that the first weights are
    soon forgotten.
    """

    def __init__(self, generator: Generator, decay: float) -> None:
        self._generator = generator
        self._decay = decay
        self._mean = {name: one.detach().clone() for name, one in generator.named_parameters()}

    @torch.no_grad()
    def add(self, steps: int) -> None:
        """Take in the weights as they are after `steps` steps."""
        decay = min(self._decay, (1 + steps) / (10 + steps))
        for name, parameter in self._generator.named_parameters():
            self._mean[name].lerp_(parameter, 1 - decay)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Let the generator hold the mean inside the block; only pointers are exchanged."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    def state_dict(self) -> dict[str, Tensor]:
        """The mean by parameter, for a checkpoint."""
        return self._mean

    def load_state_dict(self, kept: Mapping[str, Tensor]) -> None:
        """Continue from a checkpoint's mean.

        Raises:
            KeyError: it lacks a parameter.
            RuntimeError: it is that of a generator of another shape.
        """
        for name, mean in self._mean.items():
            mean.copy_(kept[name])

    def _exchange(self) -> None:
        for name, parameter in self._generator.named_parameters():
            parameter.data, self._mean[name] = self._mean[name], parameter.data
