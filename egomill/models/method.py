"""A method is a value: what of a clip it reads, which stages make that, and how it trains and samples. The rest is written once.

Samples and their order, resume, sharding, validation, generation, scores, gate, registry, lineage, sizes and in-the-wild requests ask the
method of the profile, and know none by name. Another method is a module with a `METHOD`: here, or anywhere on the path, whose dotted name
then stands in `train.method`.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from egomill.models.layout import Layout
from egomill.schemas.config import Generate, Profile

Names = dict[str, tuple[str, ...]]  # by table: columns, or of a table of one value a row the names of rows


class Batch(Protocol):
    """What a net is given: a frozen dataclass of the method's own, with names and shapes, on the device."""


@dataclass(frozen=True)
class Phase:
    """A part of a training: `share` of its steps, in which the parameters are trained whose names begin with one of `trains`.

    Names are those within the net: `transformer.` is LoRA's. The optimiser begins anew with each phase; the numbers of steps go on. The
    net's attribute `phase` is set to the name.
    """

    name: str = "all"
    share: float = 1.0
    trains: tuple[str, ...] = ("",)


@dataclass(frozen=True)
class Variant:
    """What an adapter would make otherwise than it is used: it stands beside it in scores and reports, as `adapter+name` (see `split`)."""

    settings: Mapping[str, Any] = field(default_factory=dict)  # section.name: value, in place of the profile's
    truth: bool = False  # it is given the true ego video, which generation is not: a ceiling
    still: bool = False  # nothing is generated: the first frame of what the adapter made, repeated


@dataclass(frozen=True)
class Method:
    """A method's own part.

    A net is a module that takes (batch, one generator a sample) and returns the loss of every sample [B], float32. Its `transformer` is the
    base's, to which LoRA is added; what else it holds is trained and saved beside it under names of its own.
    """

    name: str  # by which adapters are registered
    module: str  # where it stands: its code is part of every row and adapter that it makes
    stages: tuple[str, ...]  # of a rebuild after clips: modules in tasks/stages, or dotted names, each with `stage(profile)`
    reads: Names  # a training sample; what a row does not have is left out of the sample; "*" in a name: see `by`
    truth: tuple[str, ...]  # those of its names that generation is not given
    check: Callable[[Profile, Layout], None]  # ValueError where base and settings do not go with the method
    build: Callable[[Any, Profile], nn.Module]  # the base's parts and the profile to a net
    batch: Callable[[Mapping[str, Tensor], Profile, torch.device], Batch]  # a sample's tensors [B, ...] to what the net takes
    sample: Callable[[Any, Any, Sequence[torch.Generator], Generate], Tensor]  # net, batch, a generator a clip: latents [B, C, f, h, w]
    parts: tuple[str, ...] = ("transformer",)  # of the base, that the net is built of
    by: tuple[str, str] = ("", "")  # settings whose values stand for "*" in names: in training, in generation
    guided: tuple[str, ...] = ()  # further ones, where generate.guidance is above 1
    shown: tuple[str, ...] = ()  # latents of a sample that are pictures
    follows: tuple[str, ...] = ()  # settings, section.name, in which generation follows the adapter's training
    section: str = ""  # of the profile, of settings that are the method's own
    told: tuple[str, ...] = ()  # names of latents of one number each, that lineage says of every clip
    tied: tuple[str, ...] = ()  # settings that made the rows of the tables: release, adapter and profile agree in them
    phases: tuple[Phase, ...] = field(default=(Phase(),))
    given_frames: int = 0  # that a video starts with and another net made: scored apart from the rest
    references: tuple[str, ...] = ()  # that scores stand beside: "prior" and "codec" (tasks/stages/scores.py)
    # A whole model as the method's authors release it, profile and transformer's configuration to the net's own tensors.
    released: Callable[[Mapping[str, Tensor], Profile, Mapping[str, Any]], dict[str, Tensor]] | None = None
    measured: tuple[str, ...] = ()  # further scores, by what a clip is told of (tasks/networks/told.py)
    variants: Mapping[str, Variant] = field(default_factory=dict)  # by name, of letters and hyphens
    tokens: Callable[[Profile, Layout], dict[str, int]] | None = None  # of one clip, by kind, with their sum as "all"
    path: bool = True  # whether a request has to say where the head is
    requested: Callable[[Profile], Profile] = lambda profile: profile  # the profile, for a request of which nothing else is known
    # Setting that names the folder of another method's adapter: the settings by which that one is trained (flows/prepare.py).
    needs: Mapping[str, Callable[[Profile], list[str]]] = field(default_factory=dict)
    pretraining: str = "pretrain_videos"  # module in tasks/training: how the embedded base is made
    blank: Callable[[Profile, Layout, Any], Batch] | None = None  # a batch of zeros, of the base's configuration: sizes are counted on it

    def learnt(self, profile: Profile) -> Names:
        """What training reads of a clip."""
        return self._named(profile, self.by[0])

    def given(self, profile: Profile, truth: bool = False) -> Names:
        """What generation reads of a clip; with `truth` also what it is not given."""
        found = self._named(profile, self.by[1])
        return {table: tuple(name for name in names if truth or name not in self.truth) for table, names in found.items()}

    def _named(self, profile: Profile, setting: str) -> Names:
        value = _at(profile.model_dump(), setting) if setting else ""
        return {table: tuple(name.replace("*", value) for name in names) for table, names in self.reads.items()}

    def conditioning(self, profile: Profile) -> dict[str, Any]:
        """What an adapter has to say of how it is conditioned."""
        return self.followed(profile) | {_leaf(name): _at(profile.model_dump(), name) for name in self.tied}

    def followed(self, profile: Profile) -> dict[str, Any]:
        """The part of it that a generation takes from its adapter."""
        return {_leaf(name): _at(profile.model_dump(), name) for name in self.follows}

    def following(self, profile: Profile, about: Mapping[str, Any]) -> Profile:
        """The profile, with what `follows` an adapter as its description says."""
        return changed(profile, {name: about[_leaf(name)] for name in self.follows})

    def variant(self, adapter: str) -> Variant:
        """What a name in tables says: a variant of an adapter, or it as it is used. ValueError where the method has no such variant."""
        name = split(adapter)[1]
        if name and name not in self.variants:
            raise ValueError(f"method {self.name} has no variant {name!r}; known: {', '.join(self.variants) or 'none'}")
        return self.variants[name] if name else Variant()

    def apart(self, profile: Profile, other: Mapping[str, Any]) -> str:
        """Why rows or an adapter of `other` (a profile's dump, an adapter's description) do not go with the profile; "" where they do."""
        for name in self.tied:
            leaf, wanted = _leaf(name), _at(profile.model_dump(), name)
            found = _at(other, name) if name.partition(".")[0] in other else other.get(leaf, _at(Profile(name="").model_dump(), name))
            if found != wanted:
                return f"{name} {found!r}, not {wanted!r}"
        return ""

    def steps(self, total: int) -> list[tuple[Phase, range]]:
        """The phases of a training of so many steps, with the steps of each."""
        shares = [phase.share for phase in self.phases]
        ends = [round(total * sum(shares[: i + 1]) / sum(shares)) for i in range(len(shares))]
        return [(phase, range(first, end)) for phase, first, end in zip(self.phases, [0, *ends], ends, strict=False)]


def of(profile: Profile) -> Method:
    """The method of a profile. ValueError where there is none of that name."""
    return named(profile.train.method)


def named(name: str) -> Method:
    """See `of`."""
    module = name if "." in name else f"{__package__}.{name}"
    try:
        found = getattr(importlib.import_module(module), "METHOD", None)
    except ModuleNotFoundError as error:
        if error.name is None or not module.startswith(error.name):
            raise  # the method is there, and what it imports is not
        found = None
    if not isinstance(found, Method):
        known = [file.stem for file in sorted(Path(__file__).parent.glob("*.py")) if "\nMETHOD = " in file.read_text()]
        close = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(known)}"
        raise ValueError(f"train.method is {name!r}, and there is no module {module} with a METHOD; {hint}")
    return found


def split(adapter: str) -> tuple[str, str]:
    """An adapter's name in tables to (the adapter, the variant of it): "egox@v3" → ("egox@v3", "")."""
    spec, _, variant = adapter.partition("+")
    return spec, variant


def changed(profile: Profile, settings: Mapping[str, Any]) -> Profile:
    """The profile with these settings, {section.name: value}."""
    for name, value in settings.items():
        section, _, leaf = name.partition(".")
        profile = profile.model_copy(update={section: getattr(profile, section).model_copy(update={leaf: value})})
    return profile


def _leaf(name: str) -> str:
    return name.rpartition(".")[2]


def _at(said: Mapping[str, Any], name: str) -> Any:
    section, _, leaf = name.partition(".")
    return said[section][leaf]
