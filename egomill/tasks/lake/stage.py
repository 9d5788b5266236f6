"""What a stage is: a value that says what makes a table.

Its worker is a plain callable, a row in, a row (or several, or `Rejected`) out, and runs as well without Ray.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute

from egomill.schemas.fingerprint import code_parts, digest
from egomill.schemas.outcome import Rejected
from egomill.schemas.tables import KEYS, columns
from egomill.tasks.lake.fragments import all_of
from egomill.tasks.lake.tables import one_of

Worker = Callable[[dict], dict | list[dict] | Rejected]


@dataclass(frozen=True)
class Stage:
    """What makes a table. `reads` names tables and columns, of `LONG` tables the names of rows; the first is iterated, and the worker gets
    {table: {column: value}}."""

    name: str
    reads: dict[str, tuple[str, ...]]
    config: dict
    worker: Callable[[], Worker]  # called once an actor: heavy models load here
    weights: str = ""
    constants: dict[str, str] = field(default_factory=dict)  # further key columns, the same for all rows
    where: str = ""  # SQL filter on the first table; name a table of several keys first, and pick one of its rows a clip here
    also: tuple[str, ...] = ()  # modules beside the worker's whose code makes the rows, and that it does not import: a method's

    @property
    def id(self) -> str:
        """The stage's name in failures and reports."""
        return "/".join((self.name, *self.constants.values()))

    @property
    def parent(self) -> str:
        """The column of the made table that holds the input's key: takes make clips, clips make the rest."""
        return KEYS[next(iter(self.reads))][0] if self.reads else KEYS[self.name][0]

    @property
    def module(self) -> str:
        made_by = self.worker.func if isinstance(self.worker, functools.partial) else self.worker
        return made_by.__module__

    @property
    def mine(self) -> str:
        """SQL filter: this stage's rows in its table, which it may share with other adapters' or models' ("" where it is alone)."""
        return " AND ".join(one_of(column, [value]) for column, value in self.constants.items())

    @functools.cached_property
    def parts(self) -> dict[str, Any]:
        """What makes every row of the stage: what is read, settings, code, weights, the shape of the table."""
        made = {"stage": self.name, "reads": list(self.reads), "config": self.config, "code": code_parts(self.module, *self.also)}
        made |= {"weights": self.weights, "columns": columns(self.name), "constants": self.constants}
        return json.loads(json.dumps(made))  # tuples as lists, as the lake gives them back

    @functools.cached_property
    def recipe(self) -> str:
        return digest(self.parts)

    def fingerprint(self, inputs: list[str]) -> str:
        """What makes one row: the recipe, and the contents of what the row is made from."""
        return digest(self.recipe, inputs)

    def fingerprints(self, inputs: pa.Table) -> tuple[pa.ChunkedArray, pa.ChunkedArray]:
        """`fingerprint` of every row of a table of contents, and those contents as a JSON list."""
        made, told, quoted = [], [], json.encoder.encode_basestring_ascii
        recipe = f"[{quoted(self.recipe)},"  # a digest is that of the JSON of its arguments
        for batch in inputs.to_batches(64 * 1024):
            texts = [f"[{','.join(map(quoted, row))}]" for row in zip(*(column.to_pylist() for column in batch.columns), strict=True)]
            told.append(pa.array(texts, pa.string()))
            made.append(pa.array([hashlib.sha256(f"{recipe}{text}]".encode()).hexdigest()[:32] for text in texts], pa.string()))
        return pa.chunked_array(made, pa.string()), pa.chunked_array(told, pa.string())

    def rows_of(self, keys: Iterable[str]) -> str:
        """SQL filter: this stage's rows that were made from these inputs."""
        return all_of(one_of(self.parent, keys), self.mine)
