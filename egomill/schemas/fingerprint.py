"""A row knows what made it: fingerprint = sha256(recipe, content of its inputs), recipe = sha256(config, code, weights, table).

`code` hashes the syntax trees (comments, docstrings and layout left out) of a module and of every module of this package that it imports,
however deep. So a reformatted file changes nothing, a changed kernel changes exactly what uses it. Library versions are recorded with
the run and not fingerprinted: a patch release of NumPy should not rebuild a lake.

Inputs count by what they hold, not by what made them: where a recomputed row comes out as it was, nothing below it is made again.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import json
import sys
from collections.abc import Container
from functools import cache
from pathlib import Path
from typing import Any

PACKAGE = __name__.split(".")[0]
# What these say that matters to a row enters its fingerprint as values (settings, the table's columns, inputs' contents).
_LEFT_OUT = {
    "schemas": ("config", "tables", "outcome", "fingerprint", "item"),
    "tasks.lake": ("stage", "pending", "rows", "actors", "commits", "runner", "child", "watch", "tables", "fragments", "recipes"),
}
BOOKKEEPING = {f"{PACKAGE}.{room}.{module}" for room, modules in _LEFT_OUT.items() for module in modules}


def digest(*parts: Any) -> str:
    """sha256 over JSON-ready values, 32 hex digits. Key order does not matter; what JSON cannot say raises TypeError."""
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def file_sha256(path: Path) -> str:
    """sha256 of a file's bytes, 64 hex digits."""
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def folder_sha256(path: Path) -> str:
    """sha256 over names and contents of the files in a folder, 64 hex digits; folders in it do not count."""
    seen = hashlib.sha256()
    for file in sorted(entry for entry in path.iterdir() if entry.is_file()):
        seen.update(f"{file.name}:{file_sha256(file)}\n".encode(errors="surrogateescape"))
    return seen.hexdigest()


def content_of(row: dict, skip: Container[str] = ()) -> str:
    """Digest of a row as Arrow hands it back (None, bool, int, float, str, bytes, lists, dicts), 32 hex digits; `skip` names columns to
    leave out. Values are compared bit for bit: 0.0 is not -0.0, and 1 is not 1.0."""
    seen = hashlib.sha256()
    _feed(seen, {name: value for name, value in row.items() if name not in skip})
    return seen.hexdigest()[:32]


def _feed(seen: Any, value: Any) -> None:
    if isinstance(value, dict):
        seen.update(b"{%d" % len(value))
        for name in sorted(value):
            _feed(seen, name)
            _feed(seen, value[name])
    elif isinstance(value, list):
        seen.update(b"[%d" % len(value))
        for one in value:
            _feed(seen, one)
    else:
        data = value if isinstance(value, bytes) else json.dumps(value).encode()
        seen.update(b"%s%d:" % (b"b" if isinstance(value, bytes) else b"j", len(data)) + data)


def code_of(*modules: str) -> str:
    """The hash of these modules and of our modules that they reach."""
    return digest(code_parts(*modules))


def code_parts(*modules: str) -> dict[str, str]:
    """{module: hash of its syntax tree} of these modules and of our modules that they reach."""
    return {name: _tree_hash(name) for name in sorted(frozenset().union(*map(reaches, modules)))}


def check_code(parts: dict[str, str]) -> None:
    """RuntimeError where the modules here are not those of `code_parts` of another process.

    A user's own that is not to be had here travels with what runs, as a program's own code does, whose name means another one here.
    """
    ours = {name for name in parts if name.split(".")[0] == PACKAGE}
    here = {name: _tree_hash(name) for name in parts if name in ours or (name != "__main__" and _source(name) is not None)}
    others = sorted(name for name, was in here.items() if was != parts[name])
    if others:
        where = Path(__file__).parent.parent
        raise RuntimeError(f"what would run, {where}, is other code than what rows are marked with: {', '.join(others)}")


@cache
def reaches(module: str) -> frozenset[str]:
    """The modules of this package that `module` imports, directly or not, with itself, which may be a user's own."""
    seen: set[str] = set()
    todo = [module]
    while todo:
        name = todo.pop()
        if name not in seen and name not in BOOKKEEPING and _source(name) is not None:
            seen.add(name)
            todo.extend(_imports(name))
    return frozenset(seen)


@cache
def _source(module: str) -> str | None:
    """The text of a module, None for what has none. One of this package is found by its path: `find_spec` would run what lies above."""
    package, *names = module.split(".")
    if package != PACKAGE:  # a stage or a method of a user's own
        try:
            found = sys.modules.get(module) or importlib.util.find_spec(module)
        except (ImportError, ValueError):
            return None
        origin = getattr(found, "__file__", None) or getattr(found, "origin", None) or ""
        return Path(origin).read_text() if origin.endswith(".py") else None
    path = Path(__file__).parent.parent.joinpath(*names)
    file = next((f for f in (path.with_suffix(".py"), path / "__init__.py") if f.is_file()), None)
    return file.read_text() if file else None


@cache
def _imports(module: str) -> tuple[str, ...]:
    found: list[str] = []
    for node in ast.walk(ast.parse(_source(module) or "")):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            found += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return tuple(name for name in found if name.split(".")[0] == PACKAGE)


@cache
def _tree_hash(module: str) -> str:
    tree = ast.parse(_source(module) or "")
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if not isinstance(body, list) or not body:
            continue
        first = body[0]
        if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str):
            body.pop(0)
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest()
