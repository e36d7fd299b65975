"""Syntax trees -> sources without what only a reader needs: docstrings, annotations, indents."""

import ast

from gptpack.contest.bundle import is_string, is_type_checking


def without_annotations(tree: ast.Module) -> ast.Module:
    """`tree` without strings that stand alone, and without annotations outside of classes.

    Those in a class stay: dataclasses are made of them.
    """
    stripped = _Strip().visit(tree)
    assert isinstance(stripped, ast.Module)
    return ast.fix_missing_locations(stripped)


def dense(statements: list[ast.stmt]) -> str:
    """Source of `statements`, indented by one space a level where that keeps their meaning."""
    wide = ast.unparse(ast.Module(body=statements, type_ignores=[])) + "\n"
    lines = []
    for line in wide.splitlines(keepends=True):
        bare = line.lstrip(" ")
        lines.append(" " * ((len(line) - len(bare)) // 4) + bare)
    narrow = "".join(line for line in lines if line.strip())
    same = ast.dump(ast.parse(narrow)) == ast.dump(ast.parse(wide))
    return narrow if same else wide


class _Strip(ast.NodeTransformer):
    """What `without_annotations` does."""

    def __init__(self) -> None:
        self.in_class = False

    def generic_visit(self, node: ast.AST) -> ast.AST:
        super().generic_visit(node)
        if getattr(node, "body", None) == [] and not isinstance(node, ast.Module):
            node.body = [ast.Pass()]  # type: ignore[attr-defined]
        return node

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.AST:
        return self._inside(node, True)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        node.returns = None
        return self._inside(node, False)

    def _inside(self, node: ast.ClassDef | ast.FunctionDef, in_class: bool) -> ast.AST:
        outer, self.in_class = self.in_class, in_class
        self.generic_visit(node)
        self.in_class = outer
        return node

    def visit_arg(self, node: ast.arg) -> ast.AST:
        node.annotation = None
        return node

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST | None:
        if self.in_class:
            return node
        if node.value is None:
            return None
        return ast.Assign(targets=[node.target], value=node.value, lineno=node.lineno)

    def visit_Expr(self, node: ast.Expr) -> ast.AST | None:
        return None if is_string(node) else self.generic_visit(node)

    def visit_If(self, node: ast.If) -> ast.AST | None:
        return None if is_type_checking(node) else self.generic_visit(node)
