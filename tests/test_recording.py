"""Recorded passes: the gradients of passes that are launched one kernel after the other."""

import gc
import weakref
from contextlib import contextmanager

import pytest
import torch
from torch import nn
from worlds import CPU, shards, tiny

from gptpack.errors import TrainingError
from gptpack.families.golf.config import ModelConfig
from gptpack.families.golf.gpt import GPT
from gptpack.ranks import ranks
from gptpack.training.recording import WARM_PASSES, CudaGraphs, Recording
from gptpack.training.stepper import Stepper

PHASES = (
    "model.layers=3",
    "model.loop_start=1",
    "model.loop_layers=1",
    "model.loops=1",
    "model.context=32",
    "training.micro_batch_tokens=32",
    "training.dropout=0.2",
    "training.steps=12",
    "training.recurrence_start=0.5",
    "training.context_halvings=1",
    "training.full_context_start=0.75",
)


class Again:
    """Stands for CUDA: launching what was recorded is doing the work again."""

    def __init__(self) -> None:
        self.runs = self.records = 0

    def run(self, work):
        self.runs += 1
        work()

    def record(self, work):
        self.records += 1
        return work


def test_a_run_whose_passes_are_recorded_learns_the_same():
    plain, recorded = (Stepper(tiny(*PHASES), shards(4000), CPU) for _ in range(2))
    recorder = Again()
    recorded.recording = Recording(recorded.model.parameters(), recorder)
    for _ in range(12):
        losses = [float(stepper.update(0.0)[0]) for stepper in (plain, recorded)]
        assert losses[0] == losses[1]
    for stepper in (plain, recorded):
        stepper.batches.close()
    assert (recorder.runs, recorder.records) == (1, 3)
    for (name, one), two in zip(
        plain.model.state_dict().items(), recorded.model.state_dict().values(), strict=True
    ):
        assert torch.equal(one, two), name


def test_a_parameter_without_gradient_stays_without():
    used, unused = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))

    def passes(inputs, targets):
        loss = (used * inputs - targets).square().sum()
        loss.backward()
        return loss.detach()

    recording = Recording([used, unused], Again())
    inputs, targets = torch.arange(3.0), torch.zeros(3)
    for _ in range(WARM_PASSES + 3):
        recording(passes, "kind", inputs, targets)
        recording(passes, "kind", 2 * inputs, targets)
        assert used.grad is not None
        assert used.grad.tolist() == [0, 10, 40]
        assert unused.grad is None
        used.grad = None


def test_warming_up_records_every_phase_and_leaves_the_run_as_it_was():
    first = ("training.compile_warmup_steps=0",)
    plain, recorded = (Stepper(tiny(*PHASES, *first), shards(4000), CPU) for _ in range(2))
    recorder = Again()
    recorded.recording = Recording(recorded.model.parameters(), recorder)
    recorded.compiled = True
    recorded.warm_up()
    assert recorder.records == 3
    assert float(plain.update(0.0)[0]) == float(recorded.update(0.0)[0])
    for stepper in (plain, recorded):
        stepper.batches.close()


def test_a_run_that_is_over_is_freed_at_once():
    stepper = Stepper(tiny(), shards(), CPU)
    stepper.recording = Recording(stepper.model.parameters(), Again())
    stepper.update(0.0)
    stepper.batches.close()
    model = weakref.ref(stepper.model)
    gc.disable()
    try:
        del stepper
        assert model() is None
    finally:
        gc.enable()


def test_what_was_not_tried_is_not_recorded():
    model = GPT(ModelConfig(vocab=32, layers=2, width=16, heads=2, kv_heads=1, mlp_hidden=16))
    assert model.recordable
    model.blocks[1].attn.backend = "fa4"
    assert not model.recordable
    assert not GPT(ModelConfig(document_mask=True)).recordable
    assert Stepper(tiny(), shards(), CPU).recording is None


def test_cuda_that_refuses_is_one_line_with_a_way_out(monkeypatch):
    @contextmanager
    def refusing(*_arguments, **_named):
        yield
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(torch.cuda, "graph", refusing)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", object)
    graphs = CudaGraphs.__new__(CudaGraphs)
    graphs.pool = graphs.stream = None
    with pytest.raises(TrainingError, match=r"not permitted.*compiled=False"):
        graphs.record(lambda: torch.zeros(()))


@pytest.mark.gpu
@pytest.mark.filterwarnings("default")  # the compiler has warnings of its own
@pytest.mark.parametrize("world", ["plain", "looped"])
def test_a_gpu_learns_by_recorded_passes_what_it_learns_without(world):
    width = ("model.width=128", "model.heads=2", "model.kv_heads=1", "model.mlp_hidden=256")
    longer = ("model.context=128", "training.batch_tokens=1024", "training.micro_batch_tokens=512")
    own = PHASES if world == "looped" else ("training.steps=12",)
    with ranks("cuda") as here:
        steppers = [
            Stepper(tiny(*own, *width, *longer), shards(20_000), here, recorded=recorded)
            for recorded in (False, True)
        ]
        assert steppers[0].recording is None
        for stepper in steppers:
            stepper.warm_up()
        for _ in range(12):
            one, two = (float(stepper.update(0.0)[0]) for stepper in steppers)
            assert one == pytest.approx(two, rel=2e-3)
        for stepper in steppers:
            stepper.batches.close()
        recording = steppers[1].recording
        assert recording is not None
        assert len(recording.recorded) == (3 if world == "looped" else 1)
