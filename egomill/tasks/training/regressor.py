"""The regressor of ego hands as a weight: a folder that holds an adapter of method ego_hands."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from egomill.models.ego_hands import METHOD, build
from egomill.schemas.config import Profile
from egomill.tasks.training import adapters

SHORT = 16  # hex digits of a digest, by which a regressor is known


def revision(folder: str) -> str:
    """The digest of its weights. ValueError where the folder holds none."""
    _described(folder)
    return adapters.sha256(folder)[:SHORT]


def load(folder: str) -> Any:
    """The net, with the sizes that it was trained with."""
    found = _described(folder)
    net = build(None, METHOD.following(Profile(name=""), found | {"start": ""}))
    adapters.load(net, folder, found["base_revision"])
    return net.eval().requires_grad_(False)


@lru_cache(maxsize=4)
def _described(folder: str) -> dict:
    found = adapters.describe(folder)
    if found["method"] != METHOD.name:
        raise ValueError(f"genego.regressor: {folder} holds an adapter of method {found['method']}, not of {METHOD.name}")
    return found
