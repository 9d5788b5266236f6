"""Profiles: complete, frozen, and plain about what is misspelt."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from egomill.schemas.config import PROFILES, Profile


@pytest.mark.parametrize("name", [p.stem for p in PROFILES.glob("*.toml")])
def test_every_shipped_profile_loads(name):
    assert Profile.load(name).name == name


def test_overrides_and_types():
    profile = Profile.load("local", ["depth.momentum=0.5", "depth.mode=momentum", 'train.targets=["to_q"]'])
    assert (profile.depth.momentum, profile.depth.mode, profile.train.targets) == (0.5, "momentum", ("to_q",))
    with pytest.raises(ValidationError):
        profile.depth.momentum = 0.1  # type: ignore[misc]


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("depth.momentm=1", "did you mean 'momentum'"),
        ("dept.momentum=1", "did you mean 'depth'"),
        ("depth.mode=fast", "depth.mode"),
        ("momentum=1", "section.key=value"),
        ("clips.frames=0", "positive"),
    ],
)
def test_errors_name_the_setting(override, says):
    with pytest.raises(ValueError, match=says):
        Profile.load("local", [override])


def test_an_unknown_profile_names_the_nearest():
    with pytest.raises(ValueError, match="did you mean 'local'"):
        Profile.load("locall")
