"""Which data a run of MLflow saw, as MLflow keeps it: a lake's tables at their versions, to be opened again in any process.

Found by the entry point `mlflow.dataset_source`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class LanceSource:
    """Table versions of a lake as a source that MLflow can write down and reopen.

    It has the methods of MLflow's DatasetSource without inheriting it, so that naming it does not import MLflow.
    """

    uri: str
    tables: dict[str, int]

    @staticmethod
    def _get_source_type() -> str:
        return "lance"

    @staticmethod
    def _can_resolve(raw_source: Any) -> bool:
        return False

    @classmethod
    def _resolve(cls, raw_source: Any) -> LanceSource:
        raise NotImplementedError("a Lance source is made from a lake and table versions, not guessed from a string")

    def load(self) -> dict[str, Any]:
        """{table: Lance dataset at its version}."""
        from egomill.tasks.lake.tables import Lake

        return {name: Lake(self.uri).open(name, version) for name, version in self.tables.items()}

    def to_dict(self) -> dict[str, Any]:
        return {"uri": self.uri, "tables": self.tables}

    def to_json(self) -> str:
        return json.dumps(self.to_dict())

    @classmethod
    def from_dict(cls, source_dict: dict[Any, Any]) -> LanceSource:
        return cls(source_dict["uri"], dict(source_dict["tables"]))

    @classmethod
    def from_json(cls, source_json: str) -> LanceSource:
        return cls.from_dict(json.loads(source_json))
