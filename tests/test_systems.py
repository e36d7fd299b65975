"""What other systems lack, add or refuse: each is taken away or put there, and all goes on."""

import os
import pwd
import resource
import sys
from pathlib import Path
from types import SimpleNamespace

import numba
import numpy as np
import pytest
import torch
import torch._inductor.config
from worlds import invoke

import gptpack
from gptpack import shelf
from gptpack.cli import demo
from gptpack.cli.exits import exit_statuses
from gptpack.cli.options import WORDS
from gptpack.compiled import compiled
from gptpack.data.shards import Shard, write_shard
from gptpack.errors import ConfigError, MissingDependencyError, ShardError, lacks_compiler
from gptpack.families.golf import attention
from gptpack.gate.limits import load_check
from gptpack.jobs.submission import read_run
from gptpack.jobs.web import SITE, make_site
from gptpack.runs.gather import gather
from gptpack.runs.samples import read_runs
from gptpack.training.recipe import load_recipe

GOLDEN = Path(__file__).parent / "golden" / "tiny-v1.artifact"
MARK = b"\xef\xbb\xbf"
APPLE_DOUBLE = b"\0\5\x16\7\0\2\0\0Mac OS X        " + bytes(64)


def test_the_shelf_needs_no_call_that_only_some_systems_have(monkeypatch):
    # Python for macOS 10 has no preadv, and none of macOS reads or writes 2 GiB at once
    for name in ("preadv", "pwritev"):
        monkeypatch.delattr(os, name, raising=False)
    monkeypatch.setattr(shelf, "MOST_BYTES", 1000)
    pread, pwrite = os.pread, os.pwrite

    def read(descriptor: int, size: int, start: int) -> bytes:
        assert size <= 1000
        return pread(descriptor, size, start)

    def write(descriptor: int, data: memoryview, start: int) -> int:
        assert len(data) <= 1000
        return pwrite(descriptor, data, start)

    monkeypatch.setattr(os, "pread", read)
    monkeypatch.setattr(os, "pwrite", write)
    array = np.arange(999.0)
    held = shelf.Shelf().put(array)
    assert isinstance(held, shelf.Shelved)
    assert np.array_equal(np.asarray(held), array)


def test_a_byte_order_mark_is_no_part_of_a_settings_file(tmp_path):
    # as editors of Windows, and spreadsheets, write UTF-8
    check, recipe = tmp_path / "gptpack.toml", tmp_path / "recipe.toml"
    check.write_bytes(MARK + b'[check]\r\nbudget = "1KB"\r\n[[check.artifact]]\r\npath = "a"')
    recipe.write_bytes(MARK + b"[model]\r\nlayers = 3\r\n")
    assert [each.budget for each in load_check(check).artifacts] == ["1KB"]
    assert load_recipe(recipe).model.layers == 3


def test_a_byte_order_mark_is_no_part_of_a_table_or_a_list(tmp_path):
    curve, runs = tmp_path / "curve.csv", tmp_path / "runs.json"
    curve.write_bytes(MARK + b"bytes,bpb_after\r\n1000,1.5\r\n")
    runs.write_bytes(MARK + b"[1.5, 1.25]")
    (found,) = gather([curve])
    assert [curve.points for curve in found.curves] == [({"bytes": 1000.0, "measured": 1.5},)]
    assert [run.value for run in read_runs([str(runs)], "bpb")] == [1.5, 1.25]


def test_what_macos_puts_into_a_folder_does_not_keep_it(tmp_path):
    site = tmp_path / "site"
    site.mkdir()
    for name in (".DS_Store", "._index.html"):
        (site / name).write_bytes(APPLE_DOUBLE)
    # this file holds a model without a tokenizer, so that no more than the folder is looked at
    with pytest.raises(gptpack.GptpackError) as caught:
        make_site(GOLDEN, site)
    assert "exists" not in str(caught.value)
    (site / SITE).touch()
    with pytest.raises(gptpack.GptpackError) as caught:
        make_site(GOLDEN, site)
    assert "exists" not in str(caught.value)
    (site / "notes.txt").touch()
    with pytest.raises(ConfigError, match=r"holds notes\.txt"):
        make_site(GOLDEN, site)


def test_what_macos_puts_beside_a_file_is_no_run_of_its_own(tmp_path):
    (tmp_path / "tiny.gptpack").write_bytes(GOLDEN.read_bytes())
    (tmp_path / "curve.csv").write_text("bytes,bpb_after\n1000,1.5\n")
    for name in ("._tiny.gptpack", "._curve.csv"):
        (tmp_path / name).write_bytes(APPLE_DOUBLE)
    (found,) = gather([tmp_path])
    assert [len(found.packed), len(found.curves)] == [1, 1]
    assert read_run(f"7={tmp_path}").artifact == tmp_path / "tiny.gptpack"


def test_a_user_without_a_home_still_has_attention(monkeypatch):
    def nobody(_user: int) -> None:
        raise KeyError("uid not found")

    for name in ("HOME", "HF_HOME", "HF_HUB_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", nobody)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: (9, 0))
    assert attention.choose_backend("auto", torch.device("cuda")) in ("cudnn", "flash")


def test_a_model_on_a_gpu_of_apples_is_not_scored_there():
    there = SimpleNamespace(device=torch.device("mps"))
    loaded = gptpack.Loaded(language_model=there, kind="checkpoint")
    with pytest.raises(ConfigError, match="only loaded and sampled there; use cpu or cuda"):
        gptpack.evaluate(loaded, "shards")


def test_more_shards_than_files_may_be_open_are_one_line(tmp_path):
    # a shell of macOS allows 256
    paths = [tmp_path / f"x_train_{number:06d}.bin" for number in range(30)]
    for path in paths:
        write_shard(path, np.arange(9))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken = os.open(os.devnull, os.O_RDONLY)
    resource.setrlimit(resource.RLIMIT_NOFILE, (taken + 20, hard))
    try:
        with pytest.raises(ShardError, match=r"\.bin: cannot (map|read) the shard: Too many open"):
            _ = [Shard.open(path) for path in paths]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        os.close(taken)


@pytest.mark.filterwarnings("default")  # the compiler has warnings of its own
def test_a_machine_without_a_compiler_is_said_to_lack_one(capsys):
    config = torch._inductor.config
    settings = {"cpp.cxx": (None, "none-of-that-name"), "force_disable_caches": True}
    with pytest.raises(SystemExit) as ended, exit_statuses(), config.patch(settings):
        torch.compile(lambda x: x.sin() + 1)(torch.ones(3))
    assert ended.value.code == 4
    assert "install gcc or clang" in capsys.readouterr().err
    # what Triton says of the compiler for its launchers
    assert lacks_compiler(RuntimeError("Failed to find C compiler. Please specify via CC"))


def test_loops_that_numba_may_not_compile_are_refused(monkeypatch):
    monkeypatch.setattr(numba.config, "DISABLE_JIT", True)
    with pytest.raises(MissingDependencyError, match="NUMBA_DISABLE_JIT is set"):
        compiled()(lambda x: x)


@pytest.mark.parametrize("closed", ["stdout", "stderr"])
def test_a_closed_stream_changes_no_status(closed, monkeypatch):
    # as of `gptpack check FILE >&-`, or of a service
    monkeypatch.setattr(sys, closed, None)
    assert invoke("check", str(GOLDEN), "--budget", "1MB") == 0
    assert invoke("check", str(GOLDEN), "--budget", "1") == 1


def test_a_locale_without_characters_takes_texts_in_utf_8(capsys):
    # what Python makes of the bytes of a word where LC_ALL is C and its UTF-8 mode is off
    typed = "\u00dcn\u00ef".encode().decode("ascii", "surrogateescape")
    assert WORDS.convert(typed, None, None) == "\u00dcn\u00ef"
    for words in (["sample", "--prompt"], ["web", "--title"]):
        assert invoke(*words, "\udcff", str(GOLDEN)) == 2
        assert "not text in UTF-8" in capsys.readouterr().err


def test_the_demos_folder_may_begin_with_a_dash(tmp_path, monkeypatch):
    called: list[tuple[object, ...]] = []

    def stop(*words: object) -> None:
        called.append(words)
        raise gptpack.GptpackError("enough")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(demo, "write_demo_text", lambda path: path)
    monkeypatch.setattr(demo, "execute", stop)
    assert invoke("demo", "--output", "-d") == 2
    assert str(called[0][2]) == str(tmp_path / "-d" / "text.txt")
