"""Downloads against a Hub of a few lines on the loopback interface."""

import hashlib
import json
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import worlds

from gptpack.data import download
from gptpack.data.byte_pairs import load_tokenizer
from gptpack.data.download import Download, DownloadConfig, download_fineweb
from gptpack.data.shards import write_shard
from gptpack.data.splits import load_tokens
from gptpack.data.tokenizer import TokenizerConfig, train_tokenizer
from gptpack.errors import ConfigError, DataError, MissingDependencyError, TokenizerError

COMMIT = "c" * 40
DATASET = "datasets/datasets/fineweb10B_sp320"


class Hub:
    """Files and what was asked of them; `endpoint` serves them as the Hugging Face Hub does."""

    def __init__(self, files: dict[str, bytes]) -> None:
        self.files = files
        self.large = {name for name in files if not name.endswith(".json")}
        self.served = dict(files)
        """What GET sends; a test may make it differ from what is published."""
        self.requests: list[tuple[str, str]] = []
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_HEAD(self) -> None:
                hub.answer(self, "HEAD")

            def do_GET(self) -> None:
                hub.answer(self, "GET")

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.endpoint = f"http://127.0.0.1:{self.server.server_port}"

    def answer(self, request: BaseHTTPRequestHandler, method: str) -> None:
        assert "Authorization" not in request.headers
        prefix, _, rest = request.path.partition("/resolve/")
        revision, _, name = rest.partition("/")
        self.requests.append((method, name))
        data = self.files.get(name)
        if prefix != "/datasets/a/golf" or revision not in ("main", COMMIT) or data is None:
            request.send_response(404)
            request.send_header("X-Error-Code", "EntryNotFound")
            request.send_header("Content-Length", "0")
            request.end_headers()
            return
        if name in self.large:
            etag = hashlib.sha256(data).hexdigest()
        else:
            etag = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
        body = self.served[name]
        request.send_response(200)
        request.send_header("X-Repo-Commit", COMMIT)
        request.send_header("ETag", f'"{etag}"')
        if name in self.large:
            request.send_header("X-Linked-ETag", f'"{etag}"')
            request.send_header("X-Linked-Size", str(len(data)))
        request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        if method == "GET":
            request.wfile.write(body)

    def gets(self) -> list[str]:
        return [name.split("/")[-1] for method, name in self.requests if method == "GET"]


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("published")
    model = folder / "a.model"
    train_tokenizer(["the cat sat on the mat"] * 20, model, TokenizerConfig(vocab=275))
    manifest = {
        "datasets": [
            {
                "name": "fineweb10B_sp320",
                "tokenizer_name": "sp320",
                "stats": {"files_train": 2, "files_val": 1},
            }
        ],
        "tokenizers": [{"name": "sp320", "model_path": "tokenizers/fineweb_320_bpe.model"}],
    }
    files = {
        "datasets/manifest.json": json.dumps(manifest).encode(),
        "datasets/tokenizers/fineweb_320_bpe.model": model.read_bytes(),
    }
    for number, name in enumerate(["val_000000", "train_000000", "train_000001"]):
        path = folder / f"fineweb_{name}.bin"
        write_shard(path, np.full(500, number + 1))
        files[f"{DATASET}/{path.name}"] = path.read_bytes()
    return files


@pytest.fixture
def hub(published: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    pytest.importorskip("huggingface_hub")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    hub = Hub(dict(published))
    thread = threading.Thread(target=hub.server.serve_forever, args=(0.02,))
    thread.start()
    yield hub
    hub.server.shutdown()
    thread.join()
    hub.server.server_close()


def fetch(hub: Hub, output: Path, shards: int = 2, variant: str = "sp320") -> Download:
    config = DownloadConfig(variant=variant, shards=shards, repo="a/golf", endpoint=hub.endpoint)
    return download_fineweb(output, config)


def test_the_published_files_arrive_and_are_shards(hub: Hub, tmp_path: Path) -> None:
    seen: list[tuple[str, float, float]] = []
    config = DownloadConfig(variant="sp320", shards=2, repo="a/golf", endpoint=hub.endpoint)
    got = download_fineweb(tmp_path / "out", config, lambda *where: seen.append(where))
    assert got.commit == COMMIT
    assert load_tokens(got.directory, "train", 275).tolist() == [2] * 500 + [3] * 500
    assert load_tokens(got.directory, "val", 275).tolist() == [1] * 500
    assert got.tokenizer == tmp_path / "out" / "tokenizer.model"
    assert sorted(path.name for path in got.directory.iterdir()) == [
        "export_manifest.json",
        *(f"fineweb_{name}.bin" for name in ("train_000000", "train_000001", "val_000000")),
        "tokenizer.model",
    ]
    assert [done for _, done, total in seen] == [0, 1, 2, 3]


def test_files_that_are_there_are_not_fetched_again(hub: Hub, tmp_path: Path) -> None:
    fetch(hub, tmp_path, shards=1)
    hub.requests.clear()
    fetch(hub, tmp_path, shards=2)
    assert hub.gets() == ["fineweb_train_000001.bin"]


def test_a_file_that_was_cut_off_is_fetched_again_and_whole_ones_are_not(
    hub: Hub, tmp_path: Path
) -> None:
    name = f"{DATASET}/fineweb_train_000000.bin"
    hub.served[name] = hub.files[name][:700]
    with pytest.raises(DataError, match=r"fineweb_train_000000\.bin: .*run again"):
        fetch(hub, tmp_path, shards=1)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["export_manifest.json", "fineweb_val_000000.bin", "tokenizer.model"]
    hub.served[name] = hub.files[name]
    hub.requests.clear()
    fetch(hub, tmp_path, shards=1)
    assert hub.gets() == ["fineweb_train_000000.bin"]
    assert (tmp_path / "fineweb_train_000000.bin").read_bytes() == hub.files[name]


def test_bytes_with_another_hash_never_get_the_name(hub: Hub, tmp_path: Path) -> None:
    name = f"{DATASET}/fineweb_train_000000.bin"
    hub.served[name] = hub.files[name][:-1] + b"\x07"
    with pytest.raises(DataError, match="does not have the published hash"):
        fetch(hub, tmp_path, shards=1)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["export_manifest.json", "fineweb_val_000000.bin", "tokenizer.model"]
    hub.served[name] = hub.files[name]
    fetch(hub, tmp_path, shards=1)


def test_a_damaged_local_file_is_replaced(hub: Hub, tmp_path: Path) -> None:
    fetch(hub, tmp_path, shards=1)
    path = tmp_path / "fineweb_val_000000.bin"
    whole = path.read_bytes()
    path.write_bytes(whole[:-2])
    fetch(hub, tmp_path, shards=1)
    assert path.read_bytes() == whole


def test_a_published_file_that_is_no_shard_is_an_error(hub: Hub, tmp_path: Path) -> None:
    name = f"{DATASET}/fineweb_val_000000.bin"
    hub.files[name] = hub.served[name] = b"<html>"
    with pytest.raises(DataError, match=r"fineweb_val_000000\.bin: 6 bytes"):
        fetch(hub, tmp_path)


def test_a_missing_file_is_named(hub: Hub, tmp_path: Path) -> None:
    del hub.files[f"{DATASET}/fineweb_train_000001.bin"]
    with pytest.raises(DataError, match=r"a/golf/.*fineweb_train_000001\.bin: .*404") as error:
        fetch(hub, tmp_path)
    assert "\n" not in str(error.value)
    assert (tmp_path / "fineweb_train_000000.bin").exists()


def test_what_the_export_does_not_have_is_said(hub: Hub, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no fineweb10B_sp999; there are: fineweb10B_sp320"):
        fetch(hub, tmp_path, variant="sp999")
    with pytest.raises(DataError, match="2 train shards of sp320, fewer than the 3"):
        fetch(hub, tmp_path, shards=3)


@pytest.mark.parametrize("text", [b"[]", b"{", b'{"datasets": [], "tokenizers": 3}', b"\xff"])
def test_a_strange_manifest_is_refused(hub: Hub, tmp_path: Path, text: bytes) -> None:
    hub.files["datasets/manifest.json"] = hub.served["datasets/manifest.json"] = text
    with pytest.raises(DataError, match="not the contest's manifest"):
        fetch(hub, tmp_path)


def test_a_hub_that_does_not_answer_is_an_error(hub: Hub, tmp_path: Path) -> None:
    config = DownloadConfig(repo="a/golf", endpoint="http://127.0.0.1:9")
    with pytest.raises(DataError, match=r"a/golf/datasets/manifest\.json: "):
        download_fineweb(tmp_path, config)


def test_without_huggingface_hub_the_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'gptpack\[hub\]'"):
        download_fineweb(tmp_path)


# The speedruns' data set: shards at the repository's root, train's from 1, and nothing else.


@pytest.fixture
def speedrun(hub: Hub, tmp_path: Path) -> Hub:
    for number, name in enumerate(["val_000000", "train_000001", "train_000002"]):
        path = tmp_path / f"fineweb_{name}.bin"
        write_shard(path, np.array([50256, *[number] * 99]))
        hub.files[path.name] = hub.served[path.name] = path.read_bytes()
    hub.large = set(hub.files)
    return hub


def test_the_speedruns_shards_arrive_and_only_what_is_missing_is_fetched_again(
    speedrun: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    asked = ["data", "download", "fineweb", "--variant", "gpt2", "--repo", "a/golf"]
    asked += ["--endpoint", speedrun.endpoint, "--shards", "2", "-o", str(out), "--json"]
    name = "fineweb_train_000002.bin"
    speedrun.served[name] = speedrun.files[name][:-10]
    assert worlds.invoke(*asked) == 2
    assert "run again" in capsys.readouterr().err
    names = ["fineweb_train_000001.bin", name, "fineweb_val_000000.bin"]
    assert sorted(path.name for path in out.iterdir()) == [names[0], names[2]]
    speedrun.served[name] = speedrun.files[name]
    speedrun.requests.clear()
    assert worlds.invoke(*asked) == 0
    assert speedrun.gets() == [name]
    got = json.loads(capsys.readouterr().out)
    assert (got["tokenizer"], got["commit"], got["repo"]) == (None, COMMIT, "a/golf")
    assert load_tokens(out, "train", 50257).tolist() == [50256, *[1] * 99, 50256, *[2] * 99]
    assert worlds.invoke("data", "info", str(out)) == 0
    assert all(each in capsys.readouterr().out for each in names[:1])


def test_gpt2s_ranks_go_beside_the_shards_and_no_others_do(
    speedrun: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ranks = tmp_path / "vocab.bpe"
    ranks.write_text("#version: 0.2\nh e\n")
    config = DownloadConfig(
        variant="gpt2", repo="a/golf", endpoint=speedrun.endpoint, tokenizer=ranks
    )
    with pytest.raises(TokenizerError, match="not GPT-2's ranks"):
        download_fineweb(tmp_path / "out", config)
    monkeypatch.setattr(download, "GPT2_SHA256", load_tokenizer(ranks).sha256)
    got = download_fineweb(tmp_path / "out", config)
    assert got.tokenizer is not None
    assert load_tokenizer(got.tokenizer).sha256 == load_tokenizer(ranks).sha256


def test_a_shard_of_another_vocabulary_is_no_speedruns(speedrun: Hub, tmp_path: Path) -> None:
    name = "fineweb_train_000001.bin"
    write_shard(tmp_path / name, np.array([50256, 50257]))
    speedrun.files[name] = speedrun.served[name] = (tmp_path / name).read_bytes()
    with pytest.raises(DataError, match="token 50257 at 1 is not below the vocabulary's 50257"):
        fetch(speedrun, tmp_path / "out", variant="gpt2")
    with pytest.raises(DataError, match="103 train shards of gpt2, fewer than the 104"):
        fetch(speedrun, tmp_path / "out", shards=104, variant="gpt2")


def test_a_variant_knows_where_it_was_published() -> None:
    assert DownloadConfig().repo == "willdepueoai/parameter-golf"
    assert DownloadConfig(variant="gpt2").repo == "kjj0/fineweb10B-gpt2"
    assert DownloadConfig(variant="gpt2", repo="a/b").repo == "a/b"


@pytest.mark.parametrize(
    "wrong",
    [
        {"variant": "gpt3"},
        {"tokenizer": Path("x")},
        {"variant": "1024"},
        {"shards": -1},
        {"endpoint": "hub"},
        {"endpoint": "http:// /"},
    ],
)
def test_a_senseless_configuration_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        DownloadConfig(**wrong)  # type: ignore[arg-type]


def test_a_repository_name_that_cannot_be_is_refused(hub: Hub, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="repository 'a/b/c'"):
        download_fineweb(tmp_path, DownloadConfig(repo="a/b/c", endpoint=hub.endpoint))
