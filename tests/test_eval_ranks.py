"""Every kind of evaluation gives on two ranks what it gives on one."""

import importlib
import multiprocessing
from pathlib import Path

import numpy as np
import pytest
import test_ttt_lora
import test_ttt_sgd
import torch
import torch.distributed as dist
from reference_scoring import ToyModel, toy_bytes

from gptpack.evaluation.forward import Forward
from gptpack.evaluation.reading import Reading
from gptpack.evaluation.result import Score
from gptpack.evaluation.scoring import score
from gptpack.evaluation.settings import SgdSettings


def scores() -> dict[str, Score]:
    """One of each kind, on texts that do not divide by two."""
    tokens = np.random.default_rng(0).integers(0, 32, 1001).astype(np.uint16)
    reading = Reading(tokens=tokens, token_bytes=toy_bytes(), context=16, stride=5, per_token=True)
    forward = Forward(ToyModel())
    settings = SgdSettings(lr=0.05, epochs=2, chunk=24, rows=3)
    return {
        "sliding": score(forward, reading),
        "sgd": test_ttt_sgd.scored(test_ttt_sgd.tiny_gpt(), settings),
        "lora": test_ttt_lora.scored(test_ttt_lora.SMALL),
    }


def _on_rank(rank: int, ranks: int, folder: str) -> None:
    torch.set_num_threads(1)
    importlib.import_module("torch._dynamo")  # see gptpack/ranks.py
    store = dist.FileStore(f"{folder}/store", ranks)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=ranks)
    for name, found in scores().items():
        counts = [found.nats, found.tokens, found.bytes, found.windows]
        np.savez(f"{folder}/{name}{rank}.npz", counts=counts, losses=found.losses)
    # A rank that leaves while the other still receives aborts now and then.
    dist.barrier()
    dist.destroy_process_group()


def test_two_ranks_find_what_one_does(tmp_path: Path) -> None:
    spawn = multiprocessing.get_context("spawn")
    processes = [spawn.Process(target=_on_rank, args=(rank, 2, str(tmp_path))) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=300)
        assert process.exitcode == 0
    for name, alone in scores().items():
        for rank in range(2):
            with np.load(tmp_path / f"{name}{rank}.npz") as saved:
                nats, *counts = saved["counts"].tolist()
                assert counts == [alone.tokens, alone.bytes, alone.windows], name
                assert nats == pytest.approx(alone.nats, rel=1e-6), name
                np.testing.assert_allclose(saved["losses"], alone.losses, rtol=1e-5, err_msg=name)
