"""Who may import whom: the table of the design, walked with `ast` over every module.

Imports inside functions count too: a layer does not become another one by being late.
"""

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import gptpack

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "gptpack"

EVERYONE = {
    "atomic",
    "byte_level",
    "cores",
    "errors",
    "escape",
    "inputs",
    "memory",
    "progress",
    "values",
    "version",
}
"""What any part may import; these themselves import nothing but each other."""

CONFIGURATIONS = {
    "families.family",
    "families.golf.config",
    "families.modules.config",
    "families.transformers.config",
}
"""What a header says of a model: modules without torch."""

INSIDE: dict[str, set[str]] = {
    "compiled": set(),
    "codec": {"compiled"},
    "kernel_choice": {"kernels"},
    "ops": set(),
    "ranks": set(),
    "shelf": set(),
    **dict.fromkeys(CONFIGURATIONS, CONFIGURATIONS),
    "families": {"kernel_choice", "ops"},
    "quant": {"codec.polynomials", "codec.trellis", "compiled", "ops", "shelf"},
    "artifact": {"codec", *CONFIGURATIONS, "quant.methods", "quant.types"},
    "data": set(),
    "calibration": {"data", "families", "quant.allocation", "ranks", "shelf"},
    "training": {"data", "families", "ops", "quant.steps", "ranks"},
    "packing": {
        "artifact",
        "calibration",
        "codec.polynomials",
        "families",
        "quant",
        "ranks",
        "shelf",
    },
    "evaluation": {"data", "families", "ranks"},
    "inspection": {"artifact", "codec", "evaluation.result", "quant.types"},
    "gate": {"artifact", "inspection"},
    "runs": {"artifact", "inspection"},
    # a rule of the contest has the outcome of a rule of the gate: one type, and one way to tell it
    "contest": {"codec.code_sections", "gate", "runs"},
    "jobs": {
        "artifact",
        "calibration",
        "codec",
        "contest",
        "data",
        "evaluation",
        "families",
        "gate",
        "inspection",
        "packing",
        "quant",
        "ranks",
        "runs",
        "shelf",
        "training",
    },
    "hf": {"families.transformers.folder", "jobs.load"},
    "cli": {"contest", "gate", "inspection", "jobs", "runs"},
}
"""Part -> the parts it may import; a dotted name allows that module only. Commands may also import
the names of the public surface.

docs/decisions/imports.md says where this is not the design's table, and why.
"""

NUMERIC = {"numpy", "torch"}
OUTSIDE: dict[str, set[str]] = {
    "compiled": {"numba"},
    "shelf": {"numpy"},
    "codec": {"brotli", "numba", "numpy", "zstandard"},
    "kernel_choice": {"torch", "triton"},
    "ops": {"torch"},
    "ranks": {"torch"},
    "data": {*NUMERIC, "huggingface_hub", "sentencepiece", "tiktoken", "zstandard"},
    "quant": NUMERIC,
    "families": {*NUMERIC, "gguf", "kernels", "safetensors", "transformers"},
    "training": {*NUMERIC, "safetensors", "zstandard"},
    "artifact": {"numpy"},
    "calibration": {*NUMERIC, "safetensors"},
    "packing": NUMERIC,
    "evaluation": NUMERIC,
    "inspection": {"numpy"},
    "gate": set(),
    "runs": {"numpy", "plotly"},
    "contest": set(),
    "jobs": {*NUMERIC, "matplotlib", "safetensors"},
    "hf": {"torch", "transformers"},
    "cli": {"click", "rich"},
}
"""Part -> the third-party packages it may import; the standard library is open to all."""

WITHOUT_TORCH = {
    "artifact",
    "codec",
    *CONFIGURATIONS,
    "gate",
    "inspection",
    "quant.grids",
    "quant.methods",
    "quant.steps",
    "quant.types",
    "runs",
}


def modules() -> list[Path]:
    return sorted(
        path for path in PACKAGE.rglob("*.py") if "kernels" not in path.relative_to(PACKAGE).parts
    )


def part_of(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imported(path: Path) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of each import in `path`; ``from a import b`` gives ``a.b``."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def allows(allowed: set[str], name: str) -> bool:
    return any(name == entry or name.startswith(f"{entry}.") for entry in allowed)


def violation(part: str, name: str) -> bool:
    top, _, inside = name.partition(".")
    if top == "gptpack":
        allowed = INSIDE.get(part, set()) | EVERYONE | {part}
        surface = part == "cli" and inside in gptpack.__all__
        return part not in ("__init__", "__main__") and not surface and not allows(allowed, inside)
    return top not in sys.stdlib_module_names and top not in OUTSIDE.get(part, set())


def test_every_part_is_in_the_table():
    known = {*INSIDE, *EVERYONE, "cli", "__init__", "__main__"}
    assert {part_of(path) for path in modules()} <= known


def test_no_parts_import_each_other_even_by_way_of_others():
    parts = {part: {name.partition(".")[0] for name in names} for part, names in INSIDE.items()}
    assert set(TopologicalSorter(parts).static_order()) >= set(INSIDE)


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_module_imports_only_what_its_part_may(path):
    part = part_of(path)
    wrong = [f"line {line}: {name}" for line, name in imported(path) if violation(part, name)]
    assert not wrong, f"{part} may import {sorted(INSIDE.get(part, set()) | EVERYONE)}"


def test_the_rules_catch_what_they_are_for():
    assert violation("codec", "torch.nn")
    assert violation("codec", "gptpack.families.golf.config.ModelConfig")
    assert violation("quant", "gptpack.families.golf.gpt.GPT")
    assert violation("artifact", "gptpack.quant.gptq.gptq")
    assert violation("model", "rich.console")
    assert violation("config", "gptpack")
    assert not violation("artifact", "gptpack.quant.types.PackedTensor")
    assert not violation("codec", "gptpack.errors.ArtifactError")
    assert violation("cli", "gptpack.packing.search")
    assert not violation("cli", "gptpack.jobs.pack")


def test_kernels_import_nothing_of_the_project():
    for path in sorted((ROOT / "kernels").glob("**/*.py")):
        for line, name in imported(path):
            top = name.partition(".")[0]
            allowed = top in {"torch", "triton"} or top in sys.stdlib_module_names
            assert allowed, f"{path.name}:{line}: {name}"


def test_the_folder_kernels_is_no_package_of_its_own():
    # kernels/__init__.py would win over Hugging Face's package `kernels` in a checkout.
    assert not (ROOT / "kernels" / "__init__.py").exists()


FORBIDDEN_AT_IMPORT = (
    "breakpoint",
    "get_kernel",
    "input",
    "open",
    "os.environ",
    "os.getenv",
    "print",
    "subprocess",
    "torch.cuda",
    "torch.load",
    "torch.manual_seed",
    "torch.set_",
    "np.random",
    "urllib.request.urlopen",
)


def executed_at_import(node: ast.AST) -> Iterator[ast.AST]:
    """`node` and below, without the bodies of functions and of ``if __name__ == "__main__"``."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Lambda):
            continue
        if isinstance(child, ast.If) and "__name__" in ast.unparse(child.test):
            continue
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            for outer in (*child.decorator_list, *child.args.defaults):
                yield outer
                yield from executed_at_import(outer)
            continue
        yield child
        yield from executed_at_import(child)


@pytest.mark.parametrize(
    "path",
    [*modules(), *sorted((ROOT / "kernels").glob("**/*.py"))],
    ids=lambda path: str(path.relative_to(ROOT)),
)
def test_nothing_happens_at_import(path):
    """No device query, no environment read, no file, no download, no output."""
    for node in executed_at_import(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Attribute | ast.Call | ast.Subscript):
            name = ast.unparse(node.func if isinstance(node, ast.Call) else node)
            for forbidden in FORBIDDEN_AT_IMPORT:
                hit = name == forbidden or name.startswith((f"{forbidden}.", f"{forbidden}["))
                hit = hit or (forbidden.endswith("_") and name.startswith(forbidden))
                assert not hit, f"{path.name}:{node.lineno}: {name}"


@pytest.mark.slow
def test_what_reads_artifacts_does_so_without_torch():
    names = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for path in modules()
        if allows(WITHOUT_TORCH, ".".join(path.relative_to(PACKAGE).with_suffix("").parts))
    ]
    code = (
        "import importlib, sys\n"
        f"for name in {names!r}: importlib.import_module(name)\n"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


@pytest.mark.slow
def test_every_module_can_be_imported_and_says_nothing():
    names = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in modules()]
    names = [name for name in names if not name.endswith("__main__")]
    code = (
        "import importlib\n"
        f"for name in {names!r}: importlib.import_module(name)\n"
        "import torch\n"
        "assert not torch.cuda.is_initialized()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("command", ["inspect", "check"])
def test_a_file_is_looked_at_without_numpy(command, tmp_path):
    path = tmp_path / "model.gptpack"
    path.write_bytes((ROOT / "tests" / "golden" / "tiny-v2.artifact").read_bytes())
    more = ["--budget", "1MB"] if command == "check" else []
    script = (
        "import atexit, sys; atexit.register(lambda: print('numpy' in sys.modules));"
        "from gptpack.cli.main import run; run()"
    )
    found = subprocess.run(
        [sys.executable, "-c", script, command, str(path), *more],
        capture_output=True,
        text=True,
        check=True,
    )
    assert found.stdout.splitlines()[-1] == "False"
