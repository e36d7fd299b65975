"""`gptpack inspect` adds up to the byte, says what was stored, and needs no torch."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner
from golden.make_artifact import PACK
from hypothesis import given, settings
from strategies import (
    MODEL,
    TOKENIZER,
    encode_artifact,
    example_tensors,
    grid_tensors,
    json_objects,
    tensor_lists,
    write_artifact,
)

from gptpack.artifact.front import decode_header
from gptpack.cli import main
from gptpack.cli.inspect import command
from gptpack.errors import ArtifactError, GptpackError
from gptpack.inspection.inspect import flat, group_name, inspect, report_on

GOLDEN = Path(__file__).parent / "golden" / "tiny-v1.artifact"


def written(path: Path, pack: dict) -> Path:
    write_artifact(
        path,
        model=MODEL,
        tokenizer=TOKENIZER,
        tensors=example_tensors(),
        pack=pack,
        codecs="zlib",
    )
    return path


def output(*arguments: object) -> str:
    result = CliRunner().invoke(command, list(map(str, arguments)), catch_exceptions=False)
    assert result.exit_code == 0
    return result.output


@settings(max_examples=40)
@given(tensors=tensor_lists, pack=json_objects)
def test_the_bytes_of_tensors_groups_and_header_add_up_to_the_file(tensors, pack) -> None:
    data = encode_artifact(
        model=MODEL, tokenizer=TOKENIZER, tensors=tensors, pack=pack, codecs=["zlib"]
    )
    report = report_on(decode_header(data), "file")
    for parts in (report.tensors, report.groups, report.sections):
        assert report.header_bytes + sum(part.stored_bytes for part in parts) == len(data)
    assert sum(group.parameters for group in report.groups) == report.parameters
    assert sum(group.tensors for group in report.groups) == len(tensors)


def test_stored_bytes_are_shared_out_in_proportion_to_raw_bytes() -> None:
    # Stored raw, a tensor's share is the size of its arrays.
    expected = [sum(a.nbytes for a in t.arrays.values()) for t in example_tensors()]
    assert [tensor.stored_bytes for tensor in inspect(GOLDEN).tensors] == expected


def test_tensors_of_one_shape_and_method_in_different_layers_are_one_row() -> None:
    groups = {group.name: group for group in inspect(GOLDEN).groups}
    matrix = groups["blocks.*.fc.weight"]
    assert (matrix.tensors, matrix.shape, matrix.parameters) == (2, (16, 24), 768)
    assert matrix.bits_per_parameter == 8 * (768 + 64) / 768
    assert list(groups) == [
        "blocks.*.fc.weight",
        "blocks.*.gain",
        "embedding",
        "temperature",
        "skip",
    ]


@pytest.mark.parametrize(
    ("name", "group"),
    [
        ("blocks.11.attn.c_q.weight", "blocks.*.attn.c_q.weight"),
        ("0.1", "*.*"),
        ("conv2d.weight", "conv2d.weight"),
        ("", ""),
    ],
)
def test_layer_numbers_become_stars(name: str, group: str) -> None:
    assert group_name(name) == group


def test_the_budget_line_counts_file_and_code_to_the_byte(tmp_path: Path) -> None:
    path = written(tmp_path / "m", {"budget_bytes": 16_000_000, "code_bytes": 50_000})
    size = path.stat().st_size
    assert (
        f"budget 16,000,000, file {size:,}, code 50,000, headroom {15_950_000 - size:,} bytes"
        in output(path)
    )
    over = written(tmp_path / "over", {"budget_bytes": 100})
    size = over.stat().st_size
    assert f"budget 100, file {size:,}, OVER by {size - 100:,} bytes" in output(over)
    silent = written(tmp_path / "silent", {})
    assert "the file names no budget" in output(silent)


@pytest.mark.parametrize("value", [-1, True, "16MB", 1.5, None, [1], {"a": 1}, 10**4000])
def test_a_budget_that_is_not_a_count_is_shown_but_not_believed(tmp_path: Path, value) -> None:
    path = written(tmp_path / "m", {"budget_bytes": value, "code_bytes": value})
    report = inspect(path)
    assert (report.budget_bytes, report.code_bytes, report.headroom_bytes) == (None, None, None)
    assert "the file names no budget" in output(path)


def test_what_was_stored_at_pack_time_is_shown_by_dotted_name(tmp_path: Path) -> None:
    pack = {"quality": {"bits_per_byte_after": 1.2274}, "seconds": {"quantize": 30.5}, "gone": []}
    assert dict(flat(pack)) == {
        "quality.bits_per_byte_after": 1.2274,
        "seconds.quantize": 30.5,
        "gone": [],
    }
    lines = [line.split() for line in output(written(tmp_path / "m", pack)).splitlines()]
    assert ["quality.bits_per_byte_after", "1.2274"] in lines
    assert ["seconds.quantize", "30.5"] in lines


def test_text_of_a_hostile_file_is_escaped(tmp_path: Path) -> None:
    pack = {
        "\x1b[2J": "\x1b]0;owned\x07",
        "[/bold]": "[red]x[/red]",
        "s": "\ud800\u202e",
        "n": 10**400,
    }
    text = output(written(tmp_path / "m", pack))
    assert all(line.isprintable() and line.isascii() for line in text.splitlines())
    assert r"\x1b]0;owned\x07" in text
    assert "[red]x[/red]" in text


def test_json_is_the_whole_report(tmp_path: Path) -> None:
    path = written(tmp_path / "m", PACK)
    values = json.loads(output(path, "--json"))
    assert values["file_bytes"] == path.stat().st_size
    assert values["headroom_bytes"] == 4000 - path.stat().st_size
    assert values["pack"] == PACK
    assert values["model"]["width"] == 16
    assert values["tokenizer"] == {"sha256": TOKENIZER.sha256, "vocab": 64, "bos": 1}
    assert [tensor["name"] for tensor in values["tensors"]] == [t.name for t in example_tensors()]
    assert values["sections"][0] == {
        "name": "int8.scales",
        "codec": "zlib",
        "layout": values["sections"][0]["layout"],
        "raw_bytes": 64,
        "stored_bytes": values["sections"][0]["stored_bytes"],
    }


def test_only_the_header_is_read_so_a_damaged_section_does_not_matter(tmp_path: Path) -> None:
    path = written(tmp_path / "m", {})
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    assert inspect(path).file_bytes == len(data)
    data[70] ^= 1
    path.write_bytes(data)
    with pytest.raises(ArtifactError, match="SHA-256"):
        inspect(path)


def test_decoding_shares_a_section_out_by_what_its_codes_cost(tmp_path: Path) -> None:
    path = written(tmp_path / "m", {})
    values = json.loads(output(path, "--decode", "--json"))
    sizes = [tensor["stored_bytes"] for tensor in values["tensors"]]
    assert sum(sizes) + values["header_bytes"] == path.stat().st_size
    assert values["sections"] == json.loads(output(path, "--json"))["sections"]


def test_a_missing_file_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(GptpackError, match="No such file") as caught:
        inspect(tmp_path / "missing")
    assert caught.value.exit_status == 2


def test_the_command_loads_no_torch() -> None:
    code = (
        "import sys\nfrom gptpack.cli.main import run\n"
        f"run(['inspect', {str(GOLDEN)!r}])\n"
        "print('torch' in sys.modules, 'numba' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("False False\n")


def test_exit_statuses_and_messages_of_the_command(tmp_path: Path, capsys) -> None:
    def gptpack(*arguments: object) -> tuple[int, str, str]:
        status = 0
        try:
            main.run(["inspect", *map(str, arguments)])
        except SystemExit as stopped:
            status = int(stopped.code or 0)
        return status, *capsys.readouterr()

    assert gptpack(GOLDEN)[0] == 0
    corrupt = tmp_path / "corrupt"
    corrupt.write_bytes(GOLDEN.read_bytes()[:-1])
    for path, expected in ((tmp_path / "missing", 2), (corrupt, 3)):
        status, out, err = gptpack(path)
        assert (status, out, err.count("\n")) == (expected, "", 1)
    assert "gptpack inspect model.gptpack" in gptpack("--help")[1]


@pytest.mark.parametrize("codecs", ["range", "zlib"])
def test_bytes_that_the_packer_recorded_are_those_that_decoding_finds(tmp_path, codecs) -> None:
    path = tmp_path / "m"
    others = [replace(t, name=f"other.{t.name}") for t in example_tensors()]
    made = {"model": MODEL, "tokenizer": TOKENIZER, "pack": {}, "tensors": grid_tensors() + others}
    write_artifact(path, **made, codecs=codecs, recorded=True)
    told = inspect(path)
    assert told.exact
    found = [tensor.stored_bytes for tensor in inspect(path, decode=True).tensors]
    assert [tensor.stored_bytes for tensor in told.tensors] == found
    assert "shares by raw bytes" not in output(path)
    write_artifact(path, **made, codecs=codecs)
    assert not inspect(path).exact
    assert inspect(path, decode=True).exact
    assert "shares by raw bytes; --decode measures them" in output(path)
    assert "shares" not in output(path, "--decode")


@pytest.mark.parametrize("said", [-1, 10**9, True, 1.5, "many", None])
def test_recorded_bytes_that_do_not_add_up_are_not_believed(tmp_path, said) -> None:
    path = tmp_path / "m"
    tensors = [replace(t, record={"coded_bytes": said}) for t in example_tensors()]
    write_artifact(path, model=MODEL, tokenizer=TOKENIZER, tensors=tensors, pack={}, codecs="zlib")
    report = inspect(path)
    assert not report.exact
    assert min(tensor.stored_bytes for tensor in report.tensors) >= 0
    stored = sum(tensor.stored_bytes for tensor in report.tensors)
    assert report.header_bytes + stored == report.file_bytes
