"""What a method needs of another one, and who names it: the profile, or whatever is registered."""

from __future__ import annotations

from collections.abc import Callable

from egomill.models.method import of
from egomill.schemas.config import Profile
from egomill.tasks.lake.tracking import Tracker


def unnamed(profile: Profile) -> dict[str, Callable[[Profile], list[str]]]:
    """What the profile's method needs and the profile does not name, as `Method.needs` has it."""
    said = profile.model_dump()
    return {name: overrides for name, overrides in of(profile).needs.items() if not said[name.partition(".")[0]][name.partition(".")[2]]}


def standing(profile: Profile, lake: str, tracking: str) -> list[str]:
    """Settings that name what the method needs and the profile does not, by the newest that is registered. ValueError where none is."""
    found = []
    for setting, overrides in unnamed(profile).items():
        (method,) = (told.partition("=")[2] for told in overrides(profile) if told.startswith("train.method="))
        found.append(f"{setting}={Tracker.of(tracking, lake).resolve(f'{method}@candidate').folder}")
    return found
