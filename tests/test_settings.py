"""Settings of test-time training are written in one line and said in full."""

import dataclasses

import pytest

from gptpack.errors import ConfigError
from gptpack.evaluation.settings import (
    SWEEP,
    LoraSettings,
    SgdSettings,
    brief,
    describe,
    parse_settings,
)


def test_what_is_not_said_has_its_default() -> None:
    assert parse_settings("sgd") == SgdSettings()
    assert parse_settings("lora:rank=4") == LoraSettings(rank=4)
    assert parse_settings("sgd:lr=0.0025, epochs=4,reset=50") == SgdSettings(
        lr=0.0025, epochs=4, reset=50
    )
    assert parse_settings("lora:lr=1,targets=c_q+proj") == LoraSettings(lr=1.0, targets="c_q+proj")


def test_the_sweep_has_the_four_known_settings() -> None:
    found = {name: parse_settings(text) for name, text in SWEEP.items()}
    assert found == {
        "A": SgdSettings(lr=0.002, epochs=3),
        "B": SgdSettings(lr=0.0025, epochs=4),
        "C": SgdSettings(lr=0.0025, epochs=4, reset=100),
        "D": SgdSettings(lr=0.0025, epochs=4, reset=50),
    }


@pytest.mark.parametrize("text", ["sgd:lr=0.1,momentum=0", "lora:rank=3,decay=0.5"])
def test_a_description_says_everything_and_can_be_read_back(text: str) -> None:
    settings = parse_settings(text)
    said = describe(settings)
    kind, _, inside = said.removeprefix("ttt-").removesuffix(")").partition("(")
    assert parse_settings(f"{kind}:{inside.replace(', ', ',')}") == settings
    for field in dataclasses.fields(settings):
        assert f"{field.name}=" in said


def test_the_brief_form_leaves_defaults_out() -> None:
    assert brief(SgdSettings(reset=50)) == "ttt-sgd(lr=0.002, epochs=3, reset=50)"
    assert brief(LoraSettings(targets="hidden")) == (
        "ttt-lora(rank=8, lr=0.01, chunk=256, targets=hidden)"
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("adam:lr=1", "write sgd:key=value,... or lora:key=value,..., or sweep"),
        ("sgd:rate=1", "unknown setting 'sgd.rate'"),
        ("sgd:lr", "'lr' is not key=value"),
        ("sgd:epochs=1.5", "sgd.epochs=1.5 must be int"),
        ("sgd:lr=0", "lr=0.0 must be above 0"),
        ("sgd:lr=nan", "lr=nan must be a finite number"),
        ("sgd:momentum=1", r"momentum=1.0 must lie in \[0, 1\)"),
        ("sgd:chunk=2147483649", "chunk=2147483649 must be at most 2147483648"),
        ("sgd:chunk=1" + "0" * 30, "sgd.chunk is an integer of 100 bits"),
        ("sgd:reset=-1", "reset=-1 must not be negative"),
        ("lora:beta2=1", r"beta2=1.0 must lie in \[0, 1\)"),
        ("lora:targets=c_q+", "write names joined by"),
    ],
)
def test_settings_that_make_no_sense_are_errors(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_settings(text)
