"""One file a table, named by the table that it makes. No stage file imports another: they meet in a table."""

from __future__ import annotations

import importlib

from egomill.models.method import of
from egomill.schemas.config import Profile
from egomill.tasks.lake.stage import Stage


def of_method(profile: Profile) -> list[Stage]:
    """What the profile's method asks for of a chosen clip, in its order: modules beside this one, or a user's own by dotted names, with
    what else they are called with behind a slash. A module that has nothing to make of this profile gives None."""
    found = []
    for asked in of(profile).stages:
        name, *arguments = asked.split("/")
        module = importlib.import_module(name if "." in name else f"{__name__}.{name}")
        found.append(module.stage(profile, *arguments))
    return [stage for stage in found if stage is not None]
