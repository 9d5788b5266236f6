"""What a stage is handed that lies in no table."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Item:
    """A take on disk. `digest` tells whether it changed since the last look."""

    key: str
    digest: str
    row: dict
