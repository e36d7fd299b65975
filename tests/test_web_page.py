"""`gptpack web`: what its folder holds, what it refuses, and the page in a real browser."""

import functools
import gzip
import http.server
import io
import json
import os
import re
import shutil
import threading
from pathlib import Path

import pytest
import sentencepiece
import torch
from browser import Browser, browser, find_browser
from hugging import CONTEXT, SAID, make_folder
from strategies import MODULE, write_artifact
from test_report import contrast, luminance
from test_sample import TEMPLATE
from test_web_engine import packed as packed_tensors
from test_web_engine import willed
from worlds import invoke

import gptpack
from gptpack.data.tokenizer import Tokenizer
from gptpack.errors import ArtifactError, ConfigError, DataError, TokenizerError
from gptpack.families.golf.config import ModelConfig
from gptpack.families.golf.gpt import GPT
from gptpack.jobs import web
from gptpack.jobs.load import load
from gptpack.jobs.web import make_site

SUB = "some/where"
PROMPT = "The river ran"


@pytest.fixture(scope="module")
def golf(tmp_path_factory) -> tuple[Path, Path]:
    """A packed golf model and its tokenizer."""
    root = tmp_path_factory.mktemp("golf")
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SAID.splitlines()),
        model_writer=model,
        model_type="bpe",
        vocab_size=330,
        byte_fallback=True,
        minloglevel=4,
        pad_id=0,
        bos_id=1,
        eos_id=2,
        unk_id=3,
    )
    words = root / "tok.model"
    words.write_bytes(model.getvalue())
    identity = Tokenizer.load(words).identity
    config = ModelConfig(
        vocab=identity.vocab, layers=3, width=32, heads=2, kv_heads=1, mlp_hidden=48, context=96
    )
    path = root / "tiny.gptpack"
    weights = willed(GPT(config)).state_dict()
    write_artifact(
        path,
        tensors=packed_tensors(weights),
        model=config,
        tokenizer=identity,
        pack={"quality": {"bpb_after": 2.041431}},
    )
    return path, words


@pytest.fixture(scope="module")
def llama(tmp_path_factory) -> Path:
    """A packed Llama that is spoken to as a chat model."""
    root = tmp_path_factory.mktemp("llama")
    folder = make_folder(root / "llama", "llama", TEMPLATE, eos_token_id=None)
    (folder / "LICENSE").write_text("Do what you like.", encoding="utf-8")
    text = root / "train.txt"
    text.write_text(SAID * 30, encoding="utf-8")
    path = root / "m.gptpack"
    gptpack.pack(folder, delta=1e-3, text=(text,), calibration_tokens=8 * CONTEXT, output=path)
    return path


def test_the_folder_is_the_page_the_model_and_its_tokenizer(golf, tmp_path):
    path, words = golf
    made = make_site(path, tmp_path / "site", tokenizer=words, title="A <b> title")
    found = {file.name: file.read_bytes() for file in (tmp_path / "site").iterdir()}
    assert found.pop("model.gptpack") == path.read_bytes()
    assert found.pop("tokenizer.model") == words.read_bytes()
    site = json.loads(found.pop("site.json"))
    assert site["title"] == "A <b> title"
    assert site["files"] == sorted(found)
    assert made.page_bytes == sum(map(len, found.values()))
    compressed = sum(len(gzip.compress(content)) for content in found.values())
    assert compressed < 300_000
    # nothing is named that lies elsewhere
    for name, content in found.items():
        assert not re.search(rb"https?://|[\"']//", content.replace(b"http://www.w3.org", b"")), (
            name
        )


def test_an_older_site_is_replaced_and_anything_else_stays(golf, tmp_path):
    path, words = golf
    site, other = tmp_path / "site", tmp_path / "other"
    make_site(path, site, tokenizer=words)
    first = json.loads((site / "site.json").read_text())["version"]
    make_site(path, site, tokenizer=words, title="other")
    assert json.loads((site / "site.json").read_text())["version"] != first
    other.mkdir()
    (other / "mine").write_text("x")
    with pytest.raises(ConfigError, match="no site of gptpack"):
        make_site(path, other, tokenizer=words)
    assert [file.name for file in other.iterdir()] == ["mine"]
    (site / "CNAME").write_text("example.org")
    with pytest.raises(ConfigError, match="holds CNAME, which is not of the site"):
        make_site(path, site, tokenizer=words)
    assert (site / "CNAME").exists()


def test_what_cannot_be_shown_is_refused_and_leaves_nothing(golf, llama, tmp_path):
    path, words = golf
    site = tmp_path / "site"
    broken, module, strange = (tmp_path / f"{name}.gptpack" for name in ("a", "b", "c"))
    broken.write_bytes(path.read_bytes()[:-1])
    write_artifact(module, tensors=packed_tensors({"w": torch.ones(2, 3)}), model=MODULE, pack={})
    wrong = tmp_path / "wrong.model"
    shutil.copy(words, wrong)
    wrong.write_bytes(words.read_bytes() + b"\x22\x00")  # an empty message of self-tests
    for arguments, kind, said in (
        ({"path": path}, TokenizerError, "with tokenizer"),
        ({"path": path, "tokenizer": wrong}, TokenizerError, "was trained with"),
        ({"path": llama, "tokenizer": words}, ConfigError, "leave tokenizer out"),
        ({"path": broken, "tokenizer": words}, ArtifactError, "the preamble says"),
        ({"path": module}, ConfigError, "no page can run"),
        ({"path": path, "tokenizer": words, "licence": strange}, DataError, "cannot read"),
    ):
        with pytest.raises(kind, match=said):
            make_site(output=site, **arguments)
    assert not site.exists()
    assert invoke("web", str(path), "-o", str(site)) == 2


def test_the_command_says_what_it_wrote(golf, tmp_path, capsys):
    (path, words), site = golf, tmp_path / "site"
    assert invoke("web", str(path), "--tokenizer", str(words), "-o", str(site)) == 0
    assert "the page's" in capsys.readouterr().err


def test_the_types_that_the_job_lets_through_are_those_of_the_page():
    source = (web.SOURCES / "llama.js").read_text(encoding="utf-8")
    (found,) = re.findall(r"LLAMAS = (\[.*?\])", source)
    assert tuple(json.loads(found)) == web.TYPES


class Server:
    """A folder under a sub-path of a loopback address; it keeps what it was asked for."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.asked: list[str] = []

        asked = self.asked

        class Handler(http.server.SimpleHTTPRequestHandler):
            def log_message(self, *_):
                asked.append(self.path)

        handler = functools.partial(Handler, directory=str(root))
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.thread = threading.Thread(target=self.server.serve_forever, daemon=True)
        self.thread.start()
        self.url = f"http://127.0.0.1:{self.server.server_port}/{SUB}/"

    def stop(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


@pytest.fixture
def server(tmp_path):
    (tmp_path / "www" / SUB).parent.mkdir(parents=True)
    found = Server(tmp_path / "www")
    yield found
    found.stop()


needs_browser = pytest.mark.skipif(
    find_browser() is None, reason="needs Chromium; apt-get install chromium"
)


@pytest.fixture
def chromium(tmp_path):
    with browser(tmp_path) as found:
        yield found


READY = "document.querySelector('#form') && !document.querySelector('#form').hidden"
DONE = "/^(Done|Ended)/.test(document.querySelector('#status').textContent)"


def write(page: Browser, prompt: str, tokens: int = 20) -> str:
    """What the page writes at temperature 0."""
    page.evaluate(
        f"document.querySelector('#prompt').value = {json.dumps(prompt)};"
        "document.querySelector('#temperature').value = 0;"
        f"document.querySelector('#tokens').value = {tokens};"
        "document.querySelector('#status').textContent = '';"
        "document.querySelector('#go').click()"
    )
    page.wait(DONE)
    return page.evaluate("document.querySelector('#text').textContent")


@needs_browser
def test_the_page_writes_what_the_library_writes_and_asks_nobody_else(
    golf, server, chromium, tmp_path
):
    path, words = golf
    make_site(path, server.root / SUB, tokenizer=words, title="<img src=x onerror=alert(1)>")
    chromium.open(server.url, width=1280, height=900)
    chromium.wait(READY)
    loaded = load(path)
    text = loaded.generate(PROMPT, max_tokens=20, temperature=0, tokenizer=words)
    assert write(chromium, PROMPT) == PROMPT + "".join(text)
    facts = chromium.evaluate("document.querySelector('#list').textContent")
    assert loaded.weights_sha256[:16] in facts
    assert "2.0414" in facts
    assert f"{path.stat().st_size:,} bytes" in facts
    assert "<img" in chromium.evaluate("document.querySelector('h1').textContent")
    assert chromium.complaints() == []
    assert all(url.startswith(server.url) for url in chromium.requests() if url[:5] != "data:")
    assert all(asked.startswith(f"/{SUB}/") for asked in server.asked)
    # once it was loaded, it needs no server
    chromium.wait("navigator.serviceWorker.controller !== null")
    server.stop()
    chromium.open(server.url, width=390, height=844)
    chromium.wait(READY)
    assert write(chromium, PROMPT) == PROMPT + "".join(
        loaded.generate(PROMPT, max_tokens=20, temperature=0, tokenizer=words)
    )


@needs_browser
def test_a_chat_model_is_spoken_to_as_one(llama, server, chromium):
    make_site(llama, server.root / SUB)
    chromium.open(server.url, width=1280, height=900)
    chromium.wait(READY)
    said = "".join(load(llama).generate("The mill", max_tokens=20, temperature=0))
    assert write(chromium, "The mill") == said
    assert chromium.evaluate("document.querySelector('label').textContent") == "Message"
    assert "Do what you like." in chromium.evaluate("document.querySelector('#terms').textContent")


@needs_browser
def test_a_file_that_is_damaged_or_missing_is_a_sentence(golf, server, chromium):
    path, words = golf
    site = server.root / SUB
    make_site(path, site, tokenizer=words)
    data = bytearray(path.read_bytes())
    problem = "document.querySelector('#problem')"
    shown = f"{problem}?.hidden === false && {problem}.textContent"
    flipped = bytearray(data)
    flipped[-9] ^= 1
    model = site / "model.gptpack"
    for age, (content, said) in enumerate(
        (
            (data[:-100], "bytes but says"),
            (flipped, "damaged"),
            (b"<!doctype html>", "no gptpack file"),
            (None, "cannot be had"),
        )
    ):
        model.unlink()
        if content is not None:
            model.write_bytes(content)
            os.utime(model, (age, age))  # servers tell files apart by whole seconds
        chromium.open(server.url, width=390, height=844)
        assert said in chromium.wait(shown)
        assert chromium.evaluate("document.querySelector('#loading').hidden")
    # what was damaged is not kept: the whole file is loaded when it is there again
    model.write_bytes(data)
    chromium.open(server.url, width=390, height=844)
    chromium.wait(READY)


@needs_browser
@pytest.mark.parametrize(("width", "dark"), [(1600, False), (390, True)])
def test_the_page_is_readable_and_goes_by_keyboard(golf, server, chromium, width, dark):
    path, words = golf
    make_site(path, server.root / SUB, tokenizer=words, title="A-name-of-some-length-" * 4)
    chromium.open(server.url, width=width, height=844, dark=dark)
    chromium.wait(READY)
    assert chromium.evaluate("document.activeElement.id") == "prompt"
    chromium.call("Input.insertText", text=PROMPT)
    chromium.evaluate("document.querySelector('#tokens').value = 40")
    enter = {"key": "Enter", "code": "Enter", "windowsVirtualKeyCode": 13, "modifiers": 2}
    chromium.call("Input.dispatchKeyEvent", type="rawKeyDown", **enter)
    chromium.wait(DONE)
    assert chromium.evaluate("document.querySelector('#text').textContent").startswith(PROMPT)
    chromium.evaluate("document.querySelector('#licence').open = true")
    assert chromium.evaluate("document.documentElement.scrollWidth") <= width
    lightness = luminance(chromium.evaluate("getComputedStyle(document.body).backgroundColor"))
    assert (lightness < 0.1) == dark
    for place in ("#text", ".soft", "dt", "dd", "summary", "label"):
        assert contrast(chromium, f"document.querySelector('{place}')", "color") > 4.5, place
    # every control has a name, and every part that comes later says that it came
    nodes = chromium.call("Accessibility.getFullAXTree")["nodes"]
    controls = ("textbox", "spinbutton", "button", "progressbar", "region")
    named = [
        node
        for node in nodes
        if node.get("role", {}).get("value") in controls and not node["ignored"]
    ]
    assert len(named) >= 6
    assert all(node["name"]["value"] for node in named)


@needs_browser
def test_a_text_can_be_stopped(golf, server, chromium):
    path, words = golf
    make_site(path, server.root / SUB, tokenizer=words)
    chromium.open(server.url, width=800, height=844)
    chromium.wait(READY)
    # the first piece stops it
    chromium.evaluate(
        "new MutationObserver(() => document.querySelector('#stop').click())"
        ".observe(document.querySelector('#text'), {childList: true});"
        "document.querySelector('#tokens').value = 90; document.querySelector('#go').click()"
    )
    chromium.wait(DONE)
    count = chromium.evaluate("parseInt(document.querySelector('#status').textContent.slice(6))")
    assert 1 <= count <= 4  # tokens of one piece
    assert chromium.evaluate("document.querySelector('#stop').disabled")
