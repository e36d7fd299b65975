"""What calibration finds, against slow float64 sums and autograd one token at a time."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from worlds import CPU

from gptpack.calibration import fisher as fishing
from gptpack.calibration import kept
from gptpack.calibration import moments as summing
from gptpack.calibration import text as calibration_text
from gptpack.calibration import written as writing
from gptpack.calibration.collect import Calibration, collect
from gptpack.calibration.fisher import EMBEDDED, output_fisher
from gptpack.calibration.kept import Kept
from gptpack.calibration.moments import input_moments
from gptpack.calibration.text import calibrate, random_tokens, shard_windows
from gptpack.calibration.written import self_generated, written
from gptpack.errors import CheckpointError, DataError
from gptpack.families.golf.config import ModelConfig
from gptpack.families.golf.gpt import GPT
from gptpack.families.golf.layers import Linear

VARIANTS = {
    "tied": {},
    "untied": {"tied_embedding": False},
    "bigram": {"bigram_rows": 13, "bigram_width": 6},
    "values": {"value_embedding_layers": (0, 1), "value_embedding_width": 6},
    "everything": {
        "tied_embedding": False,
        "bigram_rows": 13,
        "bigram_width": 6,
        "value_embedding_layers": (1,),
        "value_embedding_width": 6,
        "smear_gate": True,
        "xsa_layers": 1,
    },
    # matrices that are used twice, and layers that go side by side
    "recurrent": {"layers": 4, "loop_start": 1, "loop_layers": 2, "loops": 1, "parallel_layers": 1},
}


def model_of(variant: str = "tied", seed: int = 0, **more: object) -> GPT:
    """A small model none of whose matrices is zero."""
    shape = {
        "vocab": 24,
        "layers": 2,
        "width": 16,
        "heads": 2,
        "kv_heads": 1,
        "mlp_hidden": 20,
        "context": 8,
    }
    model = GPT(ModelConfig(**{**shape, **VARIANTS[variant], **more}), seed=seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.normal_(std=0.3, generator=generator)
    return model


def windows_of(count: int = 7, context: int = 8, vocab: int = 24) -> torch.Tensor:
    return random_tokens(vocab, windows=count, context=context, seed=5)


def found_of(model: GPT, windows: torch.Tensor, **settings: int) -> Calibration:
    return collect(model, windows, CPU, **{"fisher_windows": 3, "batch": 2, "seed": 0} | settings)


# second moments of the inputs


def slow_moments(model: GPT, windows: torch.Tensor) -> dict[str, np.ndarray]:
    """Every matrix on its own, one token at a time, float64."""
    sums: dict[str, np.ndarray] = {}

    def add(name: str, x: torch.Tensor) -> None:
        for row in x.reshape(-1, x.shape[-1]).double().numpy():
            sums[name] = sums.get(name, 0) + np.outer(row, row)

    hooks = [
        module.register_forward_pre_hook(
            lambda _, inputs, name=name: add(f"{name}.weight", inputs[0].detach())
        )
        for name, module in model.named_modules()
        if isinstance(module, Linear) and name != "lm_head"
    ]
    with torch.no_grad():
        for window in windows:
            hidden = model.hidden(window[None])
            add("tok_emb.weight" if model.lm_head is None else "lm_head.weight", hidden)
    for hook in hooks:
        hook.remove()
    return sums


def moments(model, windows, *, batch: int) -> dict[str, torch.Tensor]:
    return dict(input_moments(model, windows, CPU, batch=batch))


@pytest.mark.parametrize("variant", VARIANTS)
def test_moments_are_those_of_a_slow_sum_for_every_matrix(variant):
    model, windows = model_of(variant), windows_of()
    found = found_of(model, windows).sensitivities
    for name, total in slow_moments(model, windows).items():
        if name == "tok_emb.weight":
            moment = moments(model, windows, batch=3)[name].numpy() / windows.numel()
        else:
            moment = np.asarray(found[name].hessian)
        wanted = total / windows.numel()
        assert np.abs(moment - wanted).max() <= 1e-5 * np.abs(wanted).max(), name


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_matrix_and_table_has_a_sensitivity_of_its_shape(variant):
    model = model_of(variant)
    found = found_of(model, windows_of()).sensitivities
    matrices = {name: p.shape for name, p in model.named_parameters() if name.endswith(".weight")}
    assert found.keys() == matrices.keys()
    for name, (rows, columns) in matrices.items():
        assert found[name].hessian.shape == (columns, columns), name
        assert found[name].row_weight.shape == (rows,), name
        assert np.isfinite(np.asarray(found[name].hessian)).all(), name
        assert (found[name].row_weight >= 0).all(), name


def test_the_size_of_a_batch_does_not_matter():
    model, windows = model_of("everything"), windows_of()
    first, *others = (moments(model, windows, batch=batch) for batch in (1, 2, 3, 7, 100))
    for other in others:
        assert first.keys() == other.keys()
        for name in first:
            torch.testing.assert_close(first[name], other[name], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("variant", ["everything", "recurrent"])
def test_sums_in_several_rounds_and_blocks_made_again_change_no_bit(variant, monkeypatch):
    model, windows = model_of(variant), windows_of()
    once = moments(model, windows, batch=3), output_fisher(model, windows, batch=1, seed=0)
    seen: list[int] = []
    monkeypatch.setattr(summing, "MOST_SUMS", 0.1)
    monkeypatch.setattr(fishing, "KEPT_OF_OUTPUTS", 1e9)
    monkeypatch.setattr(fishing, "checkpoint", counted(fishing.checkpoint, seen))
    assert len(summing._rounds(model)) > 1
    # no room for a token, so one window at a time
    again = moments(model, windows, batch=3), output_fisher(model, windows, batch=2, seed=0)
    assert len(seen) >= len(windows) * model.config.layers
    few = len(seen)
    monkeypatch.setattr(fishing, "_tokens_kept", lambda model: windows.shape[1] / 2)
    half = again[0], output_fisher(model, windows, batch=2, seed=0)
    assert len(windows) <= len(seen) - few < few
    for found in (again, half):
        for before, after in zip(once, found, strict=True):
            assert before.keys() == after.keys()
            assert all(torch.equal(before[name], after[name]) for name in before)
    # nothing of it stays
    assert not any("forward" in vars(module) for module in model.modules())


def counted(function, seen):
    def call(*arguments, **settings):
        seen.append(1)
        return function(*arguments, **settings)

    return call


def test_the_model_is_left_as_it_was():
    model, windows = model_of("everything"), windows_of()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found_of(model, windows)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    hooked = [m for m in model.modules() if m._forward_hooks or m._forward_pre_hooks]
    assert hooked == []


# Fisher information of the outputs


def sampled_labels(model: GPT, windows: torch.Tensor, batch: int, seed: int) -> torch.Tensor:
    """The labels that `output_fisher` draws."""
    generator = torch.Generator().manual_seed(seed)
    drawn = []
    with torch.no_grad():
        for start in range(0, len(windows), batch):
            logits = model.logits(model.hidden(windows[start : start + batch]))
            probabilities = logits.softmax(-1).flatten(0, 1)
            drawn.append(torch.multinomial(probabilities, 1, generator=generator)[:, 0])
    return torch.cat(drawn).view(windows.shape)


def slow_fisher(model: GPT, windows: torch.Tensor, labels: torch.Tensor) -> dict[str, np.ndarray]:
    """Squared gradients of each window's summed loss by every output of every matrix.

    An output's gradient is that of a probe of zeros that is added to it, float64, sequence by
    sequence.
    """
    model = model.double()
    model.compute_dtype = torch.float64
    sums: dict[str, np.ndarray] = {}
    for window, label in zip(windows, labels, strict=True):
        probes: dict[str, list[torch.Tensor]] = {}

        def probe(name, output, probes=probes):
            added = torch.zeros_like(output, requires_grad=True)
            probes.setdefault(name, []).append(added)
            return output + added

        hooks = []
        for name, module in model.named_modules():
            if isinstance(module, Linear) and name != "lm_head":
                key = f"{name}.weight"
            elif name == "tok_emb":
                key = EMBEDDED
            else:
                continue
            hooks.append(
                module.register_forward_hook(lambda _m, _i, output, key=key: probe(key, output))
            )
        logits = model.logits(model.hidden(window[None]))[0]
        F.cross_entropy(logits, label, reduction="sum").backward()
        for hook in hooks:
            hook.remove()
        for name, added in probes.items():
            for one in added:
                for row in one.grad.reshape(-1, one.shape[-1]).numpy():
                    sums[name] = sums.get(name, 0) + row.astype(np.float64) ** 2
    return sums


@pytest.mark.parametrize("variant", VARIANTS)
def test_fisher_rows_are_squared_gradients_of_every_token(variant):
    model, windows = model_of(variant), windows_of(5)
    found = output_fisher(model, windows, batch=2, seed=11)
    labels = sampled_labels(model, windows, batch=2, seed=11)
    wanted = slow_fisher(model_of(variant), windows, labels)
    head = "tok_emb.weight" if model.lm_head is None else "lm_head.weight"
    assert found.keys() == wanted.keys() | {head}
    for name, total in wanted.items():
        assert np.abs(found[name].numpy() - total).max() <= 2e-3 * total.max(), name


def test_the_heads_fisher_is_the_expected_squared_gradient_of_its_outputs():
    model, windows = model_of("untied"), windows_of(5)
    found = output_fisher(model, windows, batch=2, seed=0)["lm_head.weight"]
    with torch.no_grad():
        p = model.logits(model.hidden(windows)).softmax(-1).double().flatten(0, 1)
    wanted = torch.zeros(24, dtype=torch.float64)
    for label in range(24):  # the expectation over labels, term by term
        wanted += (p[:, label, None] * (p - F.one_hot(torch.tensor(label), 24)) ** 2).sum(0)
    torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-7)


def test_a_model_whose_outputs_are_not_finite_is_an_error():
    model = model_of()
    with torch.no_grad():
        model.blocks[0].mlp.fc.weight.fill_(3e38)
    with pytest.raises(CheckpointError, match="outputs are not finite"):
        output_fisher(model, windows_of(), batch=2, seed=0)
    with pytest.raises(CheckpointError, match="outputs are not finite"):
        self_generated(model, windows=2, context=4, seed=0)


def test_a_model_of_zeros_has_sensitivities_of_zero():
    model = model_of()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    for name, found in found_of(model, windows_of()).sensitivities.items():
        assert np.isfinite(found.row_weight).all(), name
        assert not np.asarray(found.hessian).any(), name


def test_one_seed_draws_the_same_labels_and_another_others():
    model, windows = model_of(), windows_of()
    a, b, c = (output_fisher(model, windows, batch=4, seed=seed) for seed in (0, 0, 1))
    assert all(torch.equal(a[name], b[name]) for name in a)
    name = "blocks.0.mlp.fc.weight"
    assert not torch.equal(a[name], c[name])


# embeddings


def test_an_untied_embedding_costs_by_how_often_a_token_comes_and_what_follows_it():
    model, windows = model_of("untied"), windows_of()
    found = found_of(model, windows, fisher_windows=len(windows))
    table = found.sensitivities["tok_emb.weight"]
    counts = np.bincount(windows.flatten().numpy(), minlength=24)
    assert table.row_weight == pytest.approx(counts / windows.numel())
    fisher = output_fisher(model, windows, batch=2, seed=0)[EMBEDDED]
    np.testing.assert_allclose(table.hessian, np.diag(fisher / windows.numel()), rtol=1e-5)


def test_tokens_are_counted_in_more_text_where_that_is_given():
    model, windows = model_of("untied"), windows_of()
    shards = [np.arange(24, dtype=np.uint16).repeat(3), np.array([5, 5, 7], np.uint16)]
    counts = calibration_text.token_counts(shards, 24)
    assert counts.sum() == 75
    assert counts[5] == 5
    assert counts[7] == 4
    found = found_of(model, windows, counts=counts).sensitivities["tok_emb.weight"]
    assert found.row_weight == pytest.approx(counts.numpy() / 75)


def test_a_tied_embedding_has_both_its_costs():
    model, windows = model_of(), windows_of()
    table = found_of(model, windows, fisher_windows=7).sensitivities["tok_emb.weight"]
    counts = np.bincount(windows.flatten().numpy(), minlength=24) / windows.numel()
    fisher = output_fisher(model, windows, batch=2, seed=0)
    inputs_CC = np.diag(fisher[EMBEDDED] / windows.numel())
    outputs_CC = moments(model, windows, batch=2)["tok_emb.weight"].numpy() / windows.numel()
    head_R = fisher["tok_emb.weight"].numpy() / windows.numel()
    # the two costs of an error that is white over all rows and columns add up
    wanted = counts.sum() * np.trace(inputs_CC) + head_R.sum() * np.trace(outputs_CC)
    assert table.row_weight.sum() * np.trace(table.hessian) == pytest.approx(wanted, rel=1e-4)
    # and so they do for a white error in any one row
    rows = counts * np.trace(inputs_CC) + head_R * np.trace(outputs_CC)
    np.testing.assert_allclose(table.row_weight * np.trace(table.hessian), rows, rtol=1e-4)


@pytest.mark.parametrize(("variant", "name"), [("bigram", "bigram"), ("values", "ve_shared")])
def test_a_projected_table_costs_what_its_projection_makes_of_it(variant, name):
    model, windows = model_of(variant), windows_of()
    found = found_of(model, windows).sensitivities
    table = found[f"{name}.embed.weight"]
    projection = model.get_parameter(f"{name}.proj.weight").detach().numpy()
    rows = found[f"{name}.proj.weight"].row_weight
    error_C = np.random.default_rng(0).standard_normal(6)
    # an error in one row of the table, seen behind the projection
    wanted = (rows * (projection @ error_C) ** 2).sum()
    assert error_C @ np.asarray(table.hessian) @ error_C == pytest.approx(wanted, rel=1e-4)
    ids = windows if name == "ve_shared" else model.bigram.hashes(windows)
    size = table.row_weight.size
    counts = np.bincount(ids.flatten().numpy(), minlength=size) / windows.numel()
    assert table.row_weight == pytest.approx(counts)


# ranks


RANKS = """
import sys
sys.path.insert(0, sys.argv[1])
import numpy as np
import torch
from test_calibration import model_of, windows_of
from gptpack.calibration.collect import collect
from gptpack.ranks import ranks
with ranks("cpu") as here:
    for windows, few in ((7, 4), (5, 1), (1, 1)):
        found = collect(
            model_of("everything"), windows_of(windows), here, fisher_windows=few, batch=2, seed=0
        )
        if here.main:
            arrays = {
                name: [torch.from_numpy(np.asarray(one.hessian)), torch.from_numpy(one.row_weight)]
                for name, one in found.sensitivities.items()
            }
            torch.save(arrays, f"{sys.argv[2]}/{windows}-{few}.pt")
"""


@pytest.mark.slow
def test_two_ranks_find_what_one_finds_even_if_one_has_no_window(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(RANKS)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc_per_node=2", str(script), str(Path(__file__).parent)]
    done = subprocess.run(
        [*command, str(tmp_path)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    for windows, few in ((7, 4), (5, 1), (1, 1)):
        two = torch.load(tmp_path / f"{windows}-{few}.pt")
        one = found_of(model_of("everything"), windows_of(windows), fisher_windows=few)
        assert two.keys() == one.sensitivities.keys()
        for name, sensitivity in one.sensitivities.items():
            hessian, rows = (tensor.numpy() for tensor in two[name])
            if "embed" not in name and name != "tok_emb.weight":  # theirs follow from Fisher rows
                wanted = np.asarray(sensitivity.hessian)
                assert np.abs(hessian - wanted).max() <= 1e-5 * np.abs(wanted).max(), name
            # labels are drawn per rank: another sample of the same
            assert rows.sum() > 0, name


# text


def test_windows_are_different_pieces_of_the_shards():
    parts = [np.arange(0, 100, dtype=np.uint16), np.arange(200, 245, dtype=np.uint16)]
    windows = shard_windows(parts, windows=16, context=8, seed=0)
    assert windows.dtype == torch.int64
    starts = windows[:, 0].tolist()
    assert len(set(starts)) == 16
    assert torch.equal(windows, windows[:, :1] + torch.arange(8))
    assert all((s % 8 == 0 and s < 96) or ((s - 200) % 8 == 0 and s >= 200) for s in starts)
    # all 12 + 5 windows there are
    assert len(set(shard_windows(parts, windows=17, context=8, seed=0)[:, 0].tolist())) == 17


def test_too_little_text_is_an_error_with_both_numbers():
    with pytest.raises(DataError, match="12 windows of 8 training tokens, 13 are needed"):
        shard_windows([np.arange(100, dtype=np.uint16)], windows=13, context=8, seed=0)


def test_a_seed_chooses_the_text_and_the_same_seed_the_same():
    shard = [np.arange(1000, dtype=np.uint16)]
    a, b, c = (shard_windows(shard, windows=9, context=8, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)
    model = model_of()
    texts = [self_generated(model, windows=3, context=8, seed=seed) for seed in (0, 0, 1)]
    assert torch.equal(texts[0], texts[1])
    assert not torch.equal(texts[0], texts[2])
    assert texts[0].shape == (3, 8)
    assert (texts[0][:, 0] == model.config.bos).all()
    assert random_tokens(24, windows=3, context=8, seed=0).max() < 24


def test_text_is_written_in_groups_of_bounded_size(monkeypatch):
    model, sizes, said = model_of(), [], []
    reader = model.reader

    def watched():
        read = reader()

        def read_on(tokens):
            sizes.append(len(tokens))
            return read(tokens)

        return read_on

    monkeypatch.setattr(model, "reader", watched)
    monkeypatch.setitem(writing.AT_ONCE, "cpu", 20)
    text = self_generated(
        model, windows=5, context=8, seed=0, progress=lambda *one: said.append(one)
    )
    assert text.shape == (5, 8)
    assert set(sizes) == {1, 2}
    assert said[-1] == (writing.PHASE, 40, 40)
    assert [done for _, done, _ in said] == sorted(done for _, done, _ in said)


def test_text_that_the_model_wrote_is_kept_beside_it(tmp_path):
    def text(seed: int = 0, writes: bool = True) -> tuple[torch.Tensor, list[str]]:
        phases: list[str] = []
        found = written(
            model_of(),
            windows=3,
            context=8,
            seed=seed,
            kept=Kept(folder=tmp_path, writes=writes),
            progress=lambda phase, *_: phases.append(phase),
        )
        return found, phases

    first, phases = text(writes=False)
    assert set(phases) == {writing.PHASE}
    assert list(tmp_path.iterdir()) == []
    assert torch.equal(text()[0], first)
    again, phases = text(writes=False)
    assert phases == ["text to calibrate on (kept from before)"]
    assert torch.equal(again, first)
    assert not torch.equal(text(seed=1)[0], first)
    assert len(list(tmp_path.iterdir())) == 2


# cache


def calibrated(model: GPT, folder: Path, **settings: int) -> tuple[Calibration, list[str]]:
    """What `calibrate` finds, and the phases that it went through."""
    phases: list[str] = []
    found = calibrate(
        model,
        windows_of(),
        CPU,
        **{"fisher_windows": 2, "batch": 2, "seed": 0} | settings,
        kept=Kept(folder=folder),
        progress=lambda phase, _done, _total: phases.append(phase),
    )
    return found, phases


def same(a: Calibration, b: Calibration) -> bool:
    assert a.sensitivities.keys() == b.sensitivities.keys()
    return (a.hessian_tokens, a.fisher_tokens) == (b.hessian_tokens, b.fisher_tokens) and all(
        np.array_equal(np.float32(x.hessian), np.float32(y.hessian))
        and np.array_equal(np.float32(x.row_weight), np.float32(y.row_weight))
        for x, y in ((a.sensitivities[name], b.sensitivities[name]) for name in a.sensitivities)
    )


def test_a_second_calibration_reads_the_first_ones_file(tmp_path):
    first, _ = calibrated(model_of("everything"), tmp_path)
    (file,) = tmp_path.iterdir()
    before = file.stat()
    second, phases = calibrated(model_of("everything"), tmp_path)
    assert phases == ["hessians (cached)"]
    assert same(first, second)
    assert [file] == list(tmp_path.iterdir())
    assert file.stat().st_mtime_ns == before.st_mtime_ns


@pytest.mark.parametrize(
    "changed",
    [
        {"model": {"seed": 1}},
        {"model": {"activation": "leaky_relu2"}},
        {"model": {"rope_dims": 4}},
        {"model": {"logit_softcap": 5.0}},
        {"fisher_windows": 3},
        {"seed": 1},
    ],
)
def test_whatever_changes_the_hessians_has_a_file_of_its_own(changed, tmp_path):
    calibrated(model_of(), tmp_path)
    settings = {key: value for key, value in changed.items() if key != "model"}
    _, phases = calibrated(model_of(**changed.get("model", {})), tmp_path, **settings)
    assert "hessians (cached)" not in phases
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("damage", ["empty", "short", "text", "flipped", "other", "folder"])
def test_a_damaged_file_is_not_believed(damage, tmp_path):
    first, _ = calibrated(model_of(), tmp_path)
    (file,) = tmp_path.iterdir()
    data = bytearray(file.read_bytes())
    if damage == "flipped":
        data[-5] ^= 0x40
    if damage == "other":
        from safetensors.numpy import save

        data = bytearray(save({"tokens": np.array([1, 2]), "rows a": np.ones(3, np.float32)}))
    file.write_bytes({"empty": b"", "short": data[:-3], "text": b"hello" * 99}.get(damage, data))
    if damage == "folder":
        file.unlink()
        file.mkdir()
    second, phases = calibrated(model_of(), tmp_path)
    assert "hessians (cached)" not in phases
    assert same(first, second)
    if damage != "folder":
        assert calibrated(model_of(), tmp_path)[1] == ["hessians (cached)"]


def test_a_cache_that_cannot_be_written_costs_time_only(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    found, _ = calibrated(model_of(), tmp_path / "file")
    assert same(found, calibrated(model_of(), tmp_path)[0])


def test_without_a_folder_nothing_is_kept(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(kept, "_write", None)
    found = calibrate(model_of(), windows_of(), CPU, fisher_windows=2, batch=2, seed=0)
    assert found.hessian_tokens == 56
    assert found.fisher_tokens == 16
    assert list(tmp_path.iterdir()) == []
