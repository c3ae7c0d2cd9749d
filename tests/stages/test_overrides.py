"""Overrides that nothing uses, and options that an experiment sets by itself."""

from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar

import pytest
from omegaconf import OmegaConf

from robustness_geometry.attacks import pgd
from robustness_geometry.checks import InputError
from stages import overrides
from stages.config import Config
from stages.experiments import Experiment
from stages.overrides import check_used, origin, prepared, with_origins

RAW = OmegaConf.create(
    {
        "attack": {"eps": 1, "steps": 3},
        "cure": {"attack": "${attack}", "eps": 0.1},
        "cure_transfer": "${cure}",
    }
)


@dataclass(frozen=True)
class Settings:
    """Settings of an experiment that sets two options of its attack by itself."""

    binds: ClassVar[Any] = {"attack": {"eps": "cure.eps", "norm": ""}}
    attack: Any = field(default_factory=lambda: partial(pgd, eps=1))
    eps: float = 0.1


@dataclass(frozen=True)
class Free(Settings):
    """Settings of an experiment that sets nothing."""

    binds: ClassVar[Any] = {}


@pytest.fixture
def check(monkeypatch):
    """Checks overrides of a stage with the experiments that are named, of two that there are."""
    keys = {"attack": "cure.attack", "eps": "cure.eps"}
    every = {
        name: Experiment(name, "Table 1", print, settings, keys=keys)
        for name, settings in (("bound", Settings()), ("free", Free()))
    }

    def select(stage, config):
        return [every[name] for name in config.experiments or every]

    def run(experiments, *given):
        blocks = {"cure": {"attack": {}, "eps": 0.1}, "experiments": experiments}
        check_used("cure", Config(**blocks), RAW, given)

    monkeypatch.setattr(overrides, "select", select)
    return run


def test_an_option_that_the_experiment_sets_is_refused_with_what_to_write(check):
    with pytest.raises(InputError, match=r"^attack.eps is not used, as bound .* write cure.eps"):
        check(["bound"], "++attack.eps=0.2")
    with pytest.raises(InputError, match=r"^attack.norm is not used, as bound sets it itself$"):
        check(["bound"], "attack.norm=2")


def test_an_option_that_another_experiment_takes_is_accepted(check):
    check(["free"], "attack.eps=0.2")
    check(["bound", "free"], "attack.eps=0.2")
    check(["bound"], "attack.steps=3", "attack=pgd", "cure.eps=3")


def test_a_choice_that_another_one_takes_the_place_of_is_refused(check):
    with pytest.raises(InputError, match=r"^cure.attack is not used; write attack instead"):
        check(["bound"], "attack@cure.attack=pgd")


def test_the_origin_of_a_key_is_found_through_interpolations():
    assert origin(RAW, "cure.attack.steps") == "attack.steps"
    assert origin(RAW, "cure_transfer.attack.steps") == "attack.steps"
    assert origin(RAW, "cure.eps") == "cure.eps"
    assert origin(RAW, "cure.nothing.there") == "cure.nothing.there"
    assert with_origins("cure.attack.eps must be 1", "cure", RAW) == "attack.eps must be 1"
    assert with_origins("cure_transfer.h must be 1", "cure_transfer", RAW) == "cure.h must be 1"


def test_keys_of_our_own_schema_can_be_set_though_no_file_mentions_them():
    given = [
        "settings.a.b=1",
        "+cure.h=1",
        "attack.x=1",
        "attack=x",
        "seeds=[0]",
        "-m",
        "hydra.a=1",
    ]
    assert prepared(given) == [
        *("++settings.a.b=1", "++cure.h=1", "++attack.x=1"),
        *("attack=x", "seeds=[0]", "-m", "hydra.a=1"),
    ]
    assert prepared(["~attack.x", "cure.training.epochs=1"]) == [
        *("~attack.x", "cure.training.epochs=1"),
    ]
