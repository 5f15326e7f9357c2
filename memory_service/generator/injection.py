"""Adapter -> chat: apply adapters for one call, each row its own.

The adapted modules are wrapped once, with a forward hook. Which adapters a call applies is kept in
a context variable, never on a module: two threads or tasks can run the same model at once with
different users' adapters.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from memory_service.errors import (
    ConfigurationError,
    IncompatibleState,
    InvalidInput,
    NumericalError,
)
from memory_service.generator.generator import Generator


@dataclass(frozen=True)
class CheckedReadouts:
    """Read-outs [batch layer key value] that `Injector.checked` found fit, or joined from such.

    Those of one layer lie together in memory, as passes use them.
    """

    readouts: Float[Tensor, "batch layer key value"]

    @classmethod
    def join(cls, several: Sequence["CheckedReadouts"]) -> "CheckedReadouts":
        """The read-outs of several, in order."""
        by_layer = torch.cat([one.readouts.transpose(0, 1) for one in several], dim=1)
        return cls(by_layer.transpose(0, 1))


@dataclass(frozen=True)
class _Recording:
    inputs: dict[int, Tensor]
    until_all: bool


class _AllRecordedError(Exception):
    """Ends a pass of which nothing more is wanted."""


class Injector:
    """Joins a base model and a generator: `with injector.apply(readouts): model(...)`.

    Raises:
        ConfigurationError: the base model lacks a module that the generator adapts, or its widths
            differ.
    """

    def __init__(self, model: PreTrainedModel, generator: Generator) -> None:
        self.model = model
        self.config = config = generator.config
        self._generator = generator
        self._shape = (len(config.sites), config.key_width, config.value_width)
        self._applied: ContextVar[CheckedReadouts | None] = ContextVar(
            "applied_adapters", default=None
        )
        self._recording: ContextVar[_Recording | None] = ContextVar("recording", default=None)
        self._handles = [
            module.register_forward_hook(self._hook(index))
            for index, module in enumerate(_adapted_modules(model, generator))
        ]

    def detach(self) -> None:
        """Take the hooks off the base model again."""
        handles: list[RemovableHandle] = self._handles
        for handle in handles:
            handle.remove()

    def checked(self, readouts: Float[Tensor, "batch layer key value"]) -> CheckedReadouts:
        """Look at read-outs once, for many passes: `apply` takes what this returns as it is.

        Raises:
            InvalidInput: there is no read-out.
            IncompatibleState: the read-outs are those of a generator of another shape.
            NumericalError: a read-out holds NaN or Inf.
        """
        if len(readouts) == 0:
            raise InvalidInput("readouts", tuple(readouts.shape), "must hold at least one")
        if tuple(readouts.shape[1:]) != self._shape:
            raise IncompatibleState(
                "adapter",
                f"is {tuple(readouts.shape[1:])} where the generator makes {self._shape}",
                "rebuild the memory from its turns",
            )
        if not torch.isfinite(readouts).all():
            raise NumericalError("adapter", "holds NaN or Inf; rebuild the memory from its turns")
        return CheckedReadouts(readouts)

    @contextmanager
    def apply(
        self, readouts: Float[Tensor, "batch layer key value"] | CheckedReadouts
    ) -> Iterator[None]:
        """Apply read-outs to every forward pass inside the block, in this thread or task only.

        A pass has `row` sequences, a multiple of `batch`: consecutive groups of row / batch rows
        share a read-out (several questions about one memory). A zero read-out is no memory.

        Raises:
            InvalidInput: there is no read-out; or, by the pass, its rows do not divide evenly.
            IncompatibleState: the read-outs are those of a generator of another shape.
            NumericalError: a read-out holds NaN or Inf.
        """
        checked = readouts if isinstance(readouts, CheckedReadouts) else self.checked(readouts)
        token = self._applied.set(checked)
        try:
            yield
        finally:
            self._applied.reset(token)

    @contextmanager
    def recording(self, *, until_all: bool = False) -> Iterator[dict[int, Tensor]]:
        """Collect the adapted modules' inputs of the last pass in the block, by position.

        In this thread or task only, as `apply`. With `until_all` the block ends as soon as every
        module was met: the layers after the last of them are not run.
        """
        recorded: dict[int, Tensor] = {}
        token = self._recording.set(_Recording(recorded, until_all))
        try:
            yield recorded
        except _AllRecordedError:
            pass
        finally:
            self._recording.reset(token)

    def _hook(self, index: int):  # type: ignore[no-untyped-def]  # torch types hooks as Callable
        def add_adapter(module: nn.Module, args: tuple[Tensor], output: Tensor) -> Tensor:
            recording = self._recording.get()
            if recording is not None:
                recording.inputs[index] = args[0]
                if recording.until_all and len(recording.inputs) == len(self.config.sites):
                    raise _AllRecordedError
            applied = self._applied.get()
            if applied is None:
                return output
            generator = self._generator
            delta = adapter_output(
                args[0], generator.a_q[index], applied.readouts[:, index], generator.b[index]
            )
            return torch.add(output, delta, alpha=generator.config.scale)

        return add_adapter


def adapter_output(
    inputs: Float[Tensor, "row token d_in"],
    a_q: Float[Tensor, "key d_in"],
    readout: Float[Tensor, "batch key value"],
    b: Float[Tensor, "d_out value"],
) -> Float[Tensor, "row token d_out"]:
    """B N^T A_q x for every row: two products shared by all users, one batched small one.

    Raises:
        InvalidInput: the rows cannot be divided evenly among the read-outs.
    """
    rows, tokens, _ = inputs.shape
    batch = readout.shape[0]
    if rows % batch:
        raise InvalidInput("readouts", batch, f"do not divide the {rows} rows of the call evenly")
    dtype = inputs.dtype
    queries = nn.functional.linear(inputs, a_q.to(dtype))
    grouped = queries.reshape(batch, rows // batch * tokens, -1)
    recalled = torch.bmm(grouped, readout.to(dtype)).reshape(rows, tokens, -1)
    return nn.functional.linear(recalled, b.to(dtype))


def _adapted_modules(model: PreTrainedModel, generator: Generator) -> list[nn.Linear]:
    """Find the linear modules the generator adapts, and check that they fit."""
    decoder_layers = model.get_decoder().layers
    remedy = "use the base model this generator was trained for"
    hidden_size = model.get_input_embeddings().weight.shape[-1]
    if hidden_size != generator.config.d_model:
        raise ConfigurationError(
            "base model",
            f"has hidden states of width {hidden_size} where the generator expects "
            f"{generator.config.d_model}",
            remedy,
        )
    modules = []
    for index, (layer, path) in enumerate(generator.config.sites):
        name = f"layers.{layer}.{path}"
        try:
            module = decoder_layers[layer].get_submodule(path)
        except (AttributeError, IndexError):
            raise ConfigurationError("base model", f"has no module {name}", remedy) from None
        if not isinstance(module, nn.Linear):
            raise ConfigurationError("base model", f"{name} is not a linear module", remedy)
        expected = (generator.b[index].shape[0], generator.a_q[index].shape[1])
        if tuple(module.weight.shape) != expected:
            raise ConfigurationError(
                "base model",
                f"{name} is {tuple(module.weight.shape)} where the generator expects {expected}",
                remedy,
            )
        modules.append(module)
    return modules
