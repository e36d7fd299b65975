"""What a header says of packing: typed where it can be meant, and never an error."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import json_objects

from gptpack.artifact.record import PackRecord, Quality

FULL = PackRecord(
    gptpack="0.1.0",
    method=(("*", "gptq-trellis"), ("blocks.*", "int8")),
    budget_bytes=150_000,
    code_bytes=0,
    step_factors=(("blocks.0.*", 0.7),),
    checkpoint_sha256="ab" * 32,
    step=1326,
    assumed=("context=1024", "bos=1"),
    calibration="shards",
    calibration_tokens=65536,
    tuned_steps=250,
    tuned_labels=0.25,
    delta=0.00129762,
    predicted_nats=0.0132524,
    quality=Quality(bpb_before=2.03103, bpb_after=2.041431, context=256, tokens=63232),
)


@pytest.mark.parametrize("record", [FULL, PackRecord(), PackRecord(method="int8", delta=3e-4)])
def test_a_record_comes_back_from_json(record):
    assert PackRecord.from_dict(json.loads(json.dumps(record.to_dict()))) == record


def test_what_is_not_known_is_not_written():
    assert PackRecord(method="int8", code_bytes=0).to_dict() == {"method": "int8", "code_bytes": 0}


@given(json_objects, st.sampled_from(list(FULL.to_dict())), json_objects)
def test_any_object_is_a_record_whose_own_words_come_back(values, name, other):
    record = PackRecord.from_dict({**values, name: other, "quality": values})
    assert PackRecord.from_dict(record.to_dict()) == record


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("budget_bytes", -1),
        ("budget_bytes", 1 << 63),
        ("budget_bytes", True),
        ("step", 2.0),
        ("delta", float("inf")),
        ("delta", 10**400),
        ("delta", "1e-4"),
        ("gptpack", 1),
        ("method", [["*"]]),
        ("method", [["*", 3]]),
        ("method", ["ab"]),
        ("assumed", ["ab", 3]),
        ("assumed", "context=1024"),
        ("step_factors", [["a", 1]]),
        ("step_factors", {"a": 1.0}),
        ("quality", 3),
    ],
)
def test_values_that_make_no_sense_are_left_out(name, value):
    assert PackRecord.from_dict({name: value}) == PackRecord()


def test_the_widest_spelling_is_longer_than_any_other():
    widest = len(json.dumps(FULL.widest(proved=True).to_dict()))
    assert widest >= len(json.dumps(FULL.to_dict()))
    assert FULL.widest(proved=False).quality == FULL.quality
