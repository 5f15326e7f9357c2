"""Follow one turn through the code: at every arrow, the module and the shape that comes out.

    .venv/bin/python examples/follow_one_turn.py

turn -> chunk -> hidden states -> update -> state -> adapter -> chat. Takes base model and generator
from the settings; the database, which keeps turns, state and adapter, is left out here.
"""

import torch
from torch import Tensor

from memory_service.bootstrap import Inference, load_inference
from memory_service.domain.chunks import chunk_session
from memory_service.domain.messages import Message, Sampling
from memory_service.domain.turns import new_turn
from memory_service.generator.hidden_states import hidden_states
from memory_service.generator.injection import Injector
from memory_service.generator.state import add
from memory_service.settings import read_settings

TEXT = "My dog is called Biscuit, and I live in Oslo."
QUESTION = "What is my dog called?"


def follow(inference: Inference) -> None:
    """Do what `services.remember` and `services.chat` do, one arrow at a time."""
    generator, base, tokens = inference.generator, inference.base, inference.tokens

    turn = new_turn(TEXT, session="first")
    show("turn", type(turn).__module__, f"{turn.role.value}: {turn.text}")

    (chunk,) = inference.encoder.chunk([turn])
    ids = tokens.chunk_ids(chunk.texts)
    show("-> chunk", chunk_session.__module__, f"{len(ids)} tokens: {chunk.text!r}")

    with torch.inference_mode():
        hidden = hidden_states(Injector(base.model, generator), torch.tensor([ids]))[0]
    show("-> hidden states", hidden_states.__module__, shape(hidden, "layer token feature"))

    update = generator.exact_update(hidden)
    show("-> update", type(generator).__module__, shape(update, "layer key column"))

    state = add(generator.empty_state(), update)
    show("-> state", add.__module__, shape(state, "layer key column"))

    readouts = generator.read_out(state)
    show("-> adapter", type(generator.readout).__module__, shape(readouts, "layer key value"))

    question = [Message("user", QUESTION)]
    without, with_adapter = inference.backend.answers(
        [question, question], [None, readouts], Sampling(max_new_tokens=24)
    )
    show("-> chat", type(inference.backend).__module__, QUESTION)
    show("", "  without the adapter", without)
    show("", "  with it", with_adapter)


def show(arrow: str, module: str, what: str) -> None:
    """One line of the way."""
    print(f"{arrow:<17} {module:<40} {' '.join(what.split())}")


def shape(tensor: Tensor, names: str) -> str:
    """Sizes with the names of `generator.shapes`."""
    sizes = zip(names.split(), tensor.shape, strict=True)
    dtype = str(tensor.dtype).removeprefix("torch.")
    return " ".join(f"{name}={size}" for name, size in sizes) + f"  {dtype}"


if __name__ == "__main__":
    follow(load_inference(read_settings(), report=lambda _: None))
