import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from memory_service.errors import NumericalError
from memory_service.evaluation.methods import memorise
from memory_service.generator.config import Association, EncodingConfig, RidgeConfig, SvdConfig
from memory_service.generator.generator import Generator
from memory_service.generator.injection import Injector
from memory_service.inference.encoder import LocalEncoder
from memory_service.inference.tokens import Tokens
from memory_service.training.data import Batch, Collator
from memory_service.training.frozen import FrozenBase
from memory_service.training.losses import Answers, read_outs
from memory_service.training.people import Episode, Split, make_episode
from tests.helpers.tiny_generator import DOWN_PROJ, O_PROJ, tiny_config, tiny_generator
from tests.helpers.tiny_training import ENCODING, small_base, tiny_training

MODULES = (O_PROJ, DOWN_PROJ)
READOUTS = {"ridge": RidgeConfig(), "svd": SvdConfig(rank=4)}
EPISODES = [
    make_episode(random.Random(seed), Split.TRAIN, facts=2, sessions=sessions, chatter=0.0)
    for seed, sessions in ((1, 1), (2, 2), (3, 1))
]


class Setup:
    def __init__(
        self,
        readout: RidgeConfig | SvdConfig,
        folder: Path,
        encoding: EncodingConfig = ENCODING,
        modules: tuple[str, ...] = MODULES,
    ) -> None:
        self.base = small_base()
        config = tiny_config(readout, modules, encoding)
        self.generator: Generator = tiny_generator(config).requires_grad_(True)
        self.injector = Injector(self.base.model, self.generator)
        self.frozen = FrozenBase(self.injector, folder)
        self.answers = Answers(self.injector, self.frozen)
        self.collator = Collator(self.base, tiny_training(generator=config))

    def batch(self, *episodes: Episode) -> Batch:
        return self.collator.batch(episodes, 2, random.Random(0))

    def read_outs(self, *episodes: Episode) -> torch.Tensor:
        return read_outs(self.frozen, self.generator, self.batch(*episodes))

    def loss(self, *episodes: Episode) -> torch.Tensor:
        batch = self.batch(*episodes)
        readouts = read_outs(self.frozen, self.generator, batch)
        return self.answers.loss(readouts, batch.asked).loss


@pytest.fixture(params=READOUTS.values(), ids=READOUTS)
def setup(request, tmp_path) -> Setup:
    return Setup(request.param, tmp_path)


def test_gradients_reach_every_parameter_of_the_generator(setup):
    setup.loss(*EPISODES).backward()
    for name, parameter in setup.generator.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        is_stacked = not name.startswith(("a_q.", "b."))
        for number, site in enumerate(parameter.grad if is_stacked else [parameter.grad]):
            assert site.any(), f"{name} of site {number}"


def test_no_gradient_reaches_the_base_model(setup):
    before = {name: value.clone() for name, value in setup.base.model.state_dict().items()}
    setup.loss(*EPISODES).backward()
    assert all(parameter.grad is None for parameter in setup.base.model.parameters())
    assert all(before[name].equal(v) for name, v in setup.base.model.state_dict().items())


@pytest.mark.parametrize("association", Association)
def test_gradient_is_that_of_finite_differences(association, tmp_path):
    encoding = replace(ENCODING, association=association)
    setup = Setup(RidgeConfig(), tmp_path, encoding, (DOWN_PROJ,))
    generator = setup.generator
    setup.loss(*EPISODES).backward()
    for name in ("a_k", "a_v", "a_q.0", "b.1", "readout.log_lambda_1"):
        parameter = generator.get_parameter(name)
        direction = torch.sign(parameter.grad)
        expected = float((parameter.grad * direction).sum())
        losses = []
        for step in (1e-3, -1e-3):
            with torch.no_grad():
                parameter += step * direction
                losses.append(float(setup.loss(*EPISODES)))
                parameter -= step * direction
        assert (losses[0] - losses[1]) / 2e-3 == pytest.approx(expected, rel=0.05), name


def test_read_outs_of_a_batch_equal_everyone_alone(setup):
    together = setup.read_outs(*EPISODES)
    assert together.shape[0] == len(EPISODES)
    for readouts, episode in zip(together, EPISODES, strict=True):
        alone = setup.read_outs(episode)[0]
        torch.testing.assert_close(readouts, alone, atol=1e-4, rtol=1e-3)


def test_order_of_the_people_does_not_matter(setup):
    together = setup.read_outs(*EPISODES)
    torch.testing.assert_close(
        setup.read_outs(*EPISODES[::-1]), together.flip(0), atol=1e-4, rtol=1e-3
    )


@pytest.mark.parametrize("association", Association)
def test_read_outs_are_what_the_product_would_store(association, tmp_path):
    encoding = replace(ENCODING, association=association)
    setup = Setup(RidgeConfig(), tmp_path, encoding, (DOWN_PROJ,))
    encoder = LocalEncoder(setup.base, Tokens(setup.base), setup.generator, setup.injector)
    for readouts, episode in zip(setup.read_outs(*EPISODES), EPISODES, strict=True):
        stored = memorise(encoder, episode.turns)
        torch.testing.assert_close(readouts, stored, atol=1e-4, rtol=1e-3)


def test_everyone_is_asked_with_the_own_adapter(setup):
    batch = setup.batch(*EPISODES)
    readouts = read_outs(setup.frozen, setup.generator, batch).detach()
    own = setup.answers.loss(readouts, batch.asked)
    swapped = setup.answers.loss(readouts.roll(1, 0), batch.asked)
    assert abs((own.loss - swapped.loss).item()) > 1e-4


def test_value_nll_is_that_of_the_values_alone(setup):
    batch = setup.batch(*EPISODES)
    readouts = torch.zeros_like(read_outs(setup.frozen, setup.generator, batch)).detach()
    found = setup.answers.loss(readouts, batch.asked)
    values_only = replace(batch.asked, weights=batch.asked.weights * batch.asked.is_value)
    expected = setup.answers.loss(readouts, values_only)
    assert found.value_nll == pytest.approx(expected.loss.item(), abs=1e-5)


def test_adapter_that_is_no_number_is_refused(setup):
    batch = setup.batch(*EPISODES)
    readouts = torch.full_like(setup.read_outs(*EPISODES), float("nan"))
    with pytest.raises(NumericalError):
        setup.answers.loss(readouts, batch.asked)
