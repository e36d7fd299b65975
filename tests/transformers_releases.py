"""Releases of transformers on the registry -> what the plug-in's tests say under each.

    make test-transformers
    python tests/transformers_releases.py 5.9.0 5.24.0

Without arguments: the last patch of each minor release from 5.9 on. Each gets an environment of its
own in ``build/``, which borrows from this one whatever the release does not want otherwise.
"""

import os
import re
import subprocess
import sys
import sysconfig
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).parent.parent
FIRST = (5, 9)
PIP = ("-m", "pip", "--disable-pip-version-check")
TESTS = ("tests/test_hf.py",)


def releases() -> list[str]:
    """The last patch of each minor release, oldest first."""
    command = [sys.executable, *PIP, "index", "versions", "transformers"]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    last: dict[tuple[int, ...], tuple[int, ...]] = {}
    for found in re.findall(r"\b(\d+)\.(\d+)\.(\d+)(?=,|\n)", said):
        version = tuple(map(int, found))
        last[version[:2]] = max(version, last.get(version[:2], version))
    return [".".join(map(str, last[minor])) for minor in sorted(last) if minor >= FIRST]


def environment(version: str) -> Path:
    """The python of an environment with this release."""
    folder = ROOT / "build" / f"transformers-{version}"
    python = folder / "bin" / "python"
    if not python.exists():
        venv.create(folder, with_pip=False, symlinks=True)
        here = Path(sysconfig.get_path("purelib"))
        site = folder.joinpath(*here.relative_to(sys.prefix).parts)
        site.joinpath("borrowed.pth").write_text(f"{here}\n", encoding="utf-8")
    return python


def check(version: str) -> bool:
    """Whether the plug-in's tests pass under this release."""
    python = environment(version)
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as constraints:
        # what the release pins otherwise than we do comes as it asks for
        for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines():
            if not line.startswith(("transformers==", "tokenizers==", "huggingface-hub==")):
                constraints.write(line + "\n")
        constraints.flush()
        install = [python, *PIP, "install", "--quiet", "-c", constraints.name]
        if subprocess.run([*install, f"transformers=={version}"], cwd=ROOT, check=False).returncode:
            return False
    said = "import transformers; print(transformers.__version__)"
    found = subprocess.run([python, "-c", said], capture_output=True, text=True, check=False)
    if found.stdout.strip() != version:
        print(found.stderr, file=sys.stderr)
        return False
    tests = [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", *TESTS]
    surroundings = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(tests, cwd=ROOT, env=surroundings, check=False).returncode == 0


def main() -> int:
    results = {}
    for version in sys.argv[1:] or releases():
        print(f"== transformers {version}", flush=True)
        results[version] = check(version)
    for version, passed in results.items():
        print(f"transformers {version}: {'passed' if passed else 'FAILED'}")
    return 0 if results and all(results.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
