"""Our generator against tensors recorded from the official implementation (reference/README.md)."""

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, PreTrainedModel

from memory_service.generator.adapter import lora_factors
from memory_service.generator.checkpoint import load_generator
from memory_service.generator.config import Encoding, SvdConfig
from memory_service.generator.generator import Generator
from memory_service.generator.hidden_states import layer_inputs
from memory_service.generator.injection import Injector
from memory_service.generator.readout import build_readout
from memory_service.generator.state import add, from_grid, to_grid

REFERENCE = Path(__file__).parent / "reference"

# Tolerances are those of reference/README.md.
LOGITS = 1e-4
HIDDEN = 2e-5
READ_OUT = 2e-5
STATE_RELATIVE = 2e-5


@dataclass(frozen=True)
class Case:
    """`exact` prefixes the tensors made with an exact SVD, the only reproducible ones."""

    tag: str
    exact: str
    rank: int
    sequential: bool = False
    checkpoint: str = "generator_checkpoint"


CASES = {
    case.tag: case
    for case in [
        Case("A", "A.exactsvd", 32),
        Case("B", "B.exactsvd", 32, sequential=True),
        Case("C", "C.exactsvd", 32),
        Case("D", "D", 8),
        Case("E", "E.exactsvd", 32),
        Case("F", "F.exactsvd", 32, sequential=True),
        Case("G", "G.exactsvd", 24, checkpoint="generator_checkpoint_rect"),
        Case("H", "H", 20),
    ]
}


@dataclass(frozen=True)
class Run:
    """What our code makes of a case; `states` has one state per chunk."""

    hidden: list[Tensor]  # [layer token d_model] per chunk
    states: list[Tensor]  # [layer key value] per chunk
    readout: Tensor  # [layer key value]
    logits: Tensor  # [token vocabulary]


class Reference:
    """The recorded tensors, the base model, and our code around them."""

    def __init__(self, golden: dict[str, Tensor], model: PreTrainedModel, case: Case) -> None:
        self.golden = golden
        self.model = model
        self.case = case
        self.generator = load_generator(REFERENCE / case.checkpoint)
        self.generator.config = replace(self.generator.config, readout=SvdConfig(case.rank))
        self.generator.readout = build_readout(self.generator.config)
        self.injector = Injector(model, self.generator)

    @property
    def query(self) -> Tensor:
        return self.golden["query.input_ids"]

    @property
    def ids(self) -> Tensor:
        return self.golden[f"{self.case.tag}.input_ids"]

    @property
    def mask(self) -> Tensor:
        return self.golden[f"{self.case.tag}.attention_mask"]

    def layers(self, name: str) -> Tensor:
        """A recorded tensor of every layer, [layer ...]."""
        layers = self.generator.config.layers
        return torch.stack([self.golden[f"{name}.layer{layer}"][0] for layer in layers])

    def encode(self, chunk: int, readout: Tensor | None) -> Tensor:
        """Hidden states of one chunk, [layer token d_model], padding included."""
        applied = nullcontext() if readout is None else self.injector.apply(readout[None])
        with applied:
            return layer_inputs(
                self.model,
                self.ids[chunk : chunk + 1],
                self.generator.config.site_layers,
                self.mask[chunk : chunk + 1],
            )[0]

    def ask(self, readout: Tensor) -> Tensor:
        with torch.no_grad(), self.injector.apply(readout[None]):
            return self.model(input_ids=self.query).logits[0]

    def run(self) -> Run:
        """Chunk by chunk in floating point, as the official code does it."""
        hidden: list[Tensor] = []
        states: list[Tensor] = []
        for chunk in range(len(self.ids)):
            adapted = self.case.sequential and bool(states)
            readout = self.generator.readout(states[-1]) if adapted else None
            hidden.append(self.encode(chunk, readout))
            update = self.generator.update(hidden[-1], self.mask[chunk].bool())
            states.append(states[-1] + update if states else update)
        readout = self.generator.readout(states[-1])
        return Run(hidden, states, readout, self.ask(readout))

    def run_on_grid(self) -> Run:
        """The way of the service: exact updates, added as integers, and unpadded chunks only."""
        assert self.mask.all()
        hidden: list[Tensor] = []
        states: list[Tensor] = []
        total = self.generator.empty_state()
        for chunk in range(len(self.ids)):
            adapted = self.case.sequential and bool(total.any())
            readout = self.generator.read_out(total) if adapted else None
            hidden.append(self.encode(chunk, readout))
            total = add(total, self.generator.exact_update(hidden[-1]))
            states.append(from_grid(total, self.generator.config.encoding.grid_exponent))
        readout = self.generator.read_out(total)
        return Run(hidden, states, readout, self.ask(readout))

    def expected_hidden(self, chunk: int) -> Tensor:
        """Recorded hidden states of one chunk, [layer token d_model]."""
        if self.case.sequential:
            return self.layers(f"{self.case.tag}.hidden.chunk{chunk}")[:, 0]
        return self.layers(f"{self.case.tag}.hidden")[:, chunk]

    def recorded_readout(self, chunk: int) -> Tensor:
        """M that the official run had after a chunk, out of lora_a = M^T A1."""
        lora_a = self.layers(f"{self.case.tag}.lora_a.chunk{chunk}")
        inverses = [torch.linalg.pinv(a_q.double()) for a_q in self.generator.a_q]
        return (lora_a.double() @ torch.stack(inverses)).mT.float()

    def expected_states(self, chunks: int) -> dict[int, Tensor]:
        """The recorded states: after every chunk where that is sequential, else after the last."""
        if self.case.sequential:
            return {n: self.layers(f"{self.case.exact}.S.chunk{n}") for n in range(chunks)}
        return {chunks - 1: self.layers(f"{self.case.tag}.S")}


@pytest.fixture(scope="module")
def golden() -> dict[str, Tensor]:
    return load_file(REFERENCE / "golden.safetensors")


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    loaded = AutoModelForCausalLM.from_pretrained(REFERENCE / "base_model", dtype=torch.float32)
    return loaded.eval().requires_grad_(False)


@pytest.fixture
def reference(
    golden: dict[str, Tensor], model: PreTrainedModel, request: pytest.FixtureRequest
) -> Iterator[Reference]:
    """The case a test is parametrised with, else A."""
    made = Reference(golden, model, CASES[getattr(request, "param", "A")])
    yield made
    made.injector.detach()


def check(reference: Reference, run: Run) -> None:
    """Compare a run with everything recorded of its case."""
    golden, exact = reference.golden, reference.case.exact
    for chunk, own in enumerate(run.hidden):
        real = reference.mask[chunk].bool()
        expected = reference.expected_hidden(chunk)
        hidden = own
        if reference.case.sequential and chunk:
            # Recorded only under the randomised SVD's adapter, so compare under that one.
            hidden = reference.encode(chunk, reference.recorded_readout(chunk - 1))
        torch.testing.assert_close(hidden[:, real], expected[:, real], atol=HIDDEN, rtol=0)
    for chunk, expected in reference.expected_states(len(run.states)).items():
        tolerance = STATE_RELATIVE * expected.abs().max().item()
        torch.testing.assert_close(run.states[chunk], expected, atol=tolerance, rtol=0)
    torch.testing.assert_close(run.readout, reference.layers(f"{exact}.M"), atol=READ_OUT, rtol=0)
    torch.testing.assert_close(run.logits, golden[f"{exact}.logits"][0], atol=LOGITS, rtol=0)


@pytest.mark.parametrize("reference", CASES, indirect=True)
def test_case_is_reproduced(reference: Reference) -> None:
    check(reference, reference.run())


@pytest.mark.parametrize("reference", ["A", "B", "C", "D", "G", "H"], indirect=True)
def test_the_grid_changes_nothing(reference: Reference) -> None:
    check(reference, reference.run_on_grid())


@pytest.mark.parametrize("reference", CASES, indirect=True)
def test_lora_factors_multiply_to_the_recorded_ones(reference: Reference) -> None:
    generator = reference.generator
    state = to_grid(reference.run().states[-1], generator.config.encoding.grid_exponent)
    factors = lora_factors(generator, state)
    lora_a = reference.layers(f"{reference.case.exact}.lora_a")
    lora_b = reference.layers(f"{reference.case.exact}.lora_b")
    assert len(factors) == len(lora_a)
    for (a, b), expected_a, expected_b in zip(factors, lora_a, lora_b, strict=True):
        assert a.shape[0] == b.shape[1] == reference.case.rank
        torch.testing.assert_close(
            b @ a * generator.config.scale,
            expected_b @ expected_a * generator.config.scale,
            atol=READ_OUT,
            rtol=0,
        )


@pytest.mark.parametrize("reference", ["C", "E"], indirect=True)
def test_chunks_in_one_padded_batch_give_the_same_state(reference: Reference) -> None:
    layers = reference.generator.config.site_layers
    hidden = layer_inputs(reference.model, reference.ids, layers, reference.mask)
    state = reference.generator.update(hidden, reference.mask.bool()).sum(dim=0)
    expected = reference.layers(f"{reference.case.tag}.S")
    tolerance = STATE_RELATIVE * expected.abs().max().item()
    torch.testing.assert_close(state, expected, atol=tolerance, rtol=0)


def test_no_adapter_and_a_zero_adapter_are_the_base_model(reference: Reference) -> None:
    expected = reference.golden["query.base_logits"][0]
    with torch.no_grad():
        plain = reference.model(input_ids=reference.query).logits[0]
    zero = reference.ask(reference.generator.read_out(reference.generator.empty_state()))
    torch.testing.assert_close(plain, expected, atol=LOGITS, rtol=0)
    assert torch.equal(zero, plain)


def test_the_other_official_way_of_applying_agrees(reference: Reference) -> None:
    logits = reference.ask(reference.run().readout)
    expected = reference.golden["A.exactsvd.logits_states"][0]
    torch.testing.assert_close(logits, expected, atol=LOGITS, rtol=0)


def test_greedy_answer_is_the_recorded_one(reference: Reference) -> None:
    expected = reference.golden["A.exactsvd.greedy_ids"]
    readout = reference.run().readout
    ids = reference.query
    with torch.no_grad(), reference.injector.apply(readout[None]):
        while ids.shape[1] < expected.shape[1]:
            chosen = reference.model(input_ids=ids).logits[:, -1].argmax(dim=-1, keepdim=True)
            ids = torch.cat([ids, chosen], dim=1)
    assert torch.equal(ids, expected)


@pytest.mark.parametrize("reference", ["B"], indirect=True)
def test_training_forward_of_case_i(reference: Reference) -> None:
    states = reference.run().states
    logits = []
    for segment, ids in enumerate(reference.ids):
        before = states[segment - 1] if segment else torch.zeros_like(states[0])
        readout = reference.generator.readout(before)
        with torch.no_grad(), reference.injector.apply(readout[None]):
            logits.append(reference.model(input_ids=ids[None]).logits[0])
    stacked = torch.stack(logits)
    expected = reference.golden["I.exactsvd.logits_default"][0]
    torch.testing.assert_close(stacked, expected, atol=LOGITS, rtol=0)
    loss = cross_entropy(stacked[:, :-1].flatten(0, 1), reference.ids[:, 1:].flatten())
    torch.testing.assert_close(loss, reference.golden["I.exactsvd.loss"][0], atol=1e-5, rtol=0)


@pytest.mark.parametrize("reference", ["B"], indirect=True)
def test_independent_chunks_would_be_noticed_where_sequential_ones_are_expected(
    reference: Reference,
) -> None:
    updates = [reference.generator.update(reference.encode(chunk, None)) for chunk in range(3)]
    logits = reference.ask(reference.generator.readout(sum(updates[1:], updates[0])))
    difference = (logits - reference.golden["B.exactsvd.logits"][0]).abs().max().item()
    assert difference == pytest.approx(1.83, abs=0.01)  # manifest.json, negative controls


def test_config_is_read_from_the_official_one() -> None:
    config = load_generator(REFERENCE / "generator_checkpoint_rect").config
    assert config.key_width == 40
    assert config.value_width == 24
    assert config.scale == 60 / 24
    assert config.readout == SvdConfig(rank=24)
    assert config.modules == ("self_attn.o_proj",)
    assert config.encoding.encoding is Encoding.SEQUENTIAL
    assert config.encoding.dtype == "float32"
    assert config.encoding.chunk_tokens == 1024


def test_official_weights_are_taken_over_unchanged() -> None:
    generator: Generator = load_generator(REFERENCE / "generator_checkpoint")
    recorded = load_file(REFERENCE / "generator_checkpoint" / "adapter_model.safetensors")
    for layer in range(3):
        stem = f"base_model.model.model.layers.{layer}.base_layer.self_attn.o_proj.fastlora_"
        assert torch.equal(generator.a_q[layer], recorded[f"{stem}A1.weight"])
        assert torch.equal(generator.a_k[layer], recorded[f"{stem}A2.weight"])
        assert torch.equal(generator.a_v[layer], recorded[f"{stem}A3.weight"])
        assert torch.equal(generator.b[layer], recorded[f"{stem}B.weight"])
        assert torch.equal(generator.norm[layer], recorded[f"{stem}hidden_state_norm.weight"])
