"""An entry function -> the parts of our own modules that it needs.

The walk begins at one function and follows names: to definitions of the same module, through its
imports to those of others, into imports inside functions. What it does not reach is left out. It
errs on the side of keeping: a local variable with the name of a definition keeps the definition.
"""

import ast
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from gptpack.errors import GptpackError

PACKAGE = "gptpack"
ROOT = Path(__file__).parent.parent
Import = ast.Import | ast.ImportFrom
Transform = Callable[[ast.Module], ast.Module]


@dataclass(slots=True)
class Module:
    """A module's source, and what its top-level statements define."""

    name: str
    source: str
    body: list[ast.stmt]
    definitions: dict[str, list[ast.stmt]] = field(default_factory=dict)
    imports: dict[str, tuple[Import, str, str]] = field(default_factory=dict)
    """Bound name -> import statement, module, and name in the module (empty: the module itself)."""
    effects: list[ast.stmt] = field(default_factory=list)
    """Statements that neither define nor import; whoever reaches the module needs them."""
    kept: set[int] = field(default_factory=set)
    """The `id` of each top-level statement that is reached."""

    def statements(self) -> Iterator[ast.stmt]:
        """The statements that were reached, in order; imports are narrowed to names in use."""
        kept = [statement for statement in self.body if id(statement) in self.kept]
        mentioned: set[str] = set()
        for statement in kept:
            if not isinstance(statement, Import):
                mentioned |= _names(statement)
        for statement in kept:
            if not isinstance(statement, Import):
                yield statement
            elif narrowed := _narrowed(statement, mentioned):
                yield narrowed


@dataclass(frozen=True, slots=True)
class Bundle:
    """The parts of modules that an entry function needs."""

    modules: tuple[Module, ...]
    outside: frozenset[str]
    """Top-level names of the standard and third-party modules that they import."""


def source_path(name: str) -> Path | None:
    """The file of one of our modules; None if `name` is a folder, or not ours."""
    parts = name.split(".")
    file = ROOT.joinpath(*parts[1:]).with_suffix(".py")
    return file if parts[0] == PACKAGE and len(parts) > 1 and file.is_file() else None


def bundle(
    entry: str, function: str, *, without: Iterable[str] = (), transform: Transform | None = None
) -> Bundle:
    """Everything that `function` of the module `entry` needs.

    Args:
        without: modules, and names in modules, that are left out; importing them in the bundle is
            an ImportError.
        transform: change to each module before it is walked, such as the removal of annotations.

    Raises:
        GptpackError: a module has no source, or lacks what is imported from it.
    """
    modules: dict[str, Module] = {}
    outside: set[str] = set()
    left_out = frozenset(without)
    pending = [(entry, function)]
    seen: set[tuple[str, str]] = set()
    while pending:
        place = pending.pop()
        if place in seen or left_out & {place[0], ".".join(place)}:
            continue
        seen.add(place)
        name, wanted = place
        statements: list[ast.stmt] = []
        if name not in modules:
            modules[name] = _read(name, transform)
            statements += modules[name].effects
        module = modules[name]
        targets: list[tuple[str, str]] = []
        if wanted in module.imports and wanted not in module.definitions:
            importing, *target = module.imports[wanted]
            module.kept.add(id(importing))
            targets.append((target[0], target[1]))
        else:
            statements += _defining(module, wanted)
        for statement in statements:
            module.kept.add(id(statement))
            pending += [(name, used) for used in _names(statement) if _has(module, used)]
            targets += _imported(statement)
        for target_module, inner in targets:
            top = target_module.partition(".")[0]
            if top != PACKAGE:
                outside.add(top)
            elif not inner or source_path(f"{target_module}.{inner}"):
                pending.append((f"{target_module}.{inner}" if inner else target_module, "*"))
            else:
                pending.append((target_module, inner))
    return Bundle(tuple(modules[name] for name in sorted(modules)), frozenset(outside))


def _read(name: str, transform: Transform | None) -> Module:
    path = source_path(name)
    if path is None:
        raise GptpackError(f"{name}: its source is not there; install gptpack from its sources")
    source = path.read_text(encoding="utf-8")
    tree = ast.parse(source)
    module = Module(name, source, (transform(tree) if transform else tree).body)
    for statement in module.body:
        _classify(module, statement)
    return module


def _classify(module: Module, statement: ast.stmt) -> None:
    """Note whether a top-level statement defines, imports, or does something."""
    if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        module.definitions.setdefault(statement.name, []).append(statement)
    elif isinstance(statement, ast.Assign | ast.AnnAssign | ast.AugAssign):
        targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
        plain = all(isinstance(target, ast.Name | ast.Tuple) for target in targets)
        for name in {n for target in targets for n in _names(target)}:
            module.definitions.setdefault(name, []).append(statement)
        if not plain:
            module.effects.append(statement)
    elif isinstance(statement, Import):
        for bound, target, inner in bindings(statement):
            module.imports[bound] = (statement, target, inner)
    elif not is_string(statement) and not is_type_checking(statement):
        module.effects.append(statement)


def bindings(statement: Import) -> Iterator[tuple[str, str, str]]:
    """(bound name, module, name in it) of an import; the last is empty for a whole module."""
    for alias in statement.names:
        if isinstance(statement, ast.Import):
            yield alias.asname or alias.name.partition(".")[0], alias.name, ""
        else:
            assert statement.module is not None, "relative imports are not used"
            yield alias.asname or alias.name, statement.module, alias.name


def is_string(statement: ast.stmt) -> bool:
    """Whether a statement is a string that stands alone, such as a docstring."""
    value = statement.value if isinstance(statement, ast.Expr) else None
    return isinstance(value, ast.Constant) and isinstance(value.value, str)


def is_type_checking(statement: ast.stmt) -> bool:
    """Whether a statement is for type checkers only."""
    return isinstance(statement, ast.If) and ast.unparse(statement.test) == "TYPE_CHECKING"


def _has(module: Module, name: str) -> bool:
    return name in module.definitions or name in module.imports


def _defining(module: Module, name: str) -> list[ast.stmt]:
    """The statements that define `name` in a module; ``*`` is all that it defines."""
    if name == "*":
        return [statement for found in module.definitions.values() for statement in found]
    if name in module.definitions:
        return module.definitions[name]
    raise GptpackError(f"{module.name} has no {name}; it cannot be bundled")


def _names(node: ast.AST) -> set[str]:
    """All names in `node`, whatever they stand for."""
    return {inner.id for inner in ast.walk(node) if isinstance(inner, ast.Name)}


def _imported(statement: ast.stmt) -> Iterator[tuple[str, str]]:
    for node in ast.walk(statement):
        if isinstance(node, Import):
            yield from ((target, inner) for _, target, inner in bindings(node))


def _narrowed(statement: Import, mentioned: set[str]) -> Import | None:
    """The import of those names that are `mentioned`; None where none is."""
    pairs = zip(statement.names, bindings(statement), strict=True)
    names = [alias for alias, (bound, _, _) in pairs if bound in mentioned]
    if not names:
        return None
    if isinstance(statement, ast.Import):
        return ast.Import(names=names)
    return ast.ImportFrom(module=statement.module, names=names, level=0)
