"""What a training step sees: which clips, in which order, with which noise. A pure function of seed and step.

Neither the number of workers nor a restart changes it: a step's global batch is cut out of an endless stream of shuffled epochs, every
worker takes its slice of it, and every sample's noise comes from a generator of its own. So two workers see what one would have seen,
and a training resumed at step 400 goes on as if nothing had happened; no state of a loader has to be saved.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import zip_longest

import numpy as np
import torch
from torch import Tensor

from egomill.models.method import Names
from egomill.schemas.fingerprint import digest
from egomill.schemas.tables import LONG
from egomill.schemas.tensors import unpack
from egomill.tasks.lake.fragments import all_of
from egomill.tasks.lake.rows import handed, read_rows
from egomill.tasks.lake.tables import Damaged, Lake, intact, one_of


def batch_indices(count: int, batch: int, seed: int, step: int) -> list[int]:
    """The samples (of `count`) of global batch `step`, counted from 0. Every sample comes once an epoch; batches straddle epochs."""
    if count < 1:
        raise ValueError("nothing to train on")
    indices = []
    for position in range(step * batch, (step + 1) * batch):
        epoch, place = divmod(position, count)
        indices.append(int(_permutation(count, seed, epoch)[place]))
    return indices


@lru_cache(maxsize=2)  # a batch may straddle two epochs; to make one of 600,000 takes 22 ms
def _permutation(count: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(count)


def places(batch: int, rank: int, world: int, part: int) -> range:
    """Which places of a step's global batch this worker takes in pass `part`: two workers take in one pass what one takes in two."""
    first = (part * world + rank) * batch
    return range(first, first + batch)


def noise_generator(seed: int, step: int, place: int) -> torch.Generator:
    """For the sample at `place` of the global batch of `step` (on CPU: the same numbers whatever the device)."""
    words = np.random.SeedSequence([seed, step, place]).generate_state(2, np.uint32)
    return torch.Generator().manual_seed(int(words[0]) << 32 | int(words[1]))


@dataclass
class Samples:
    """Clips of a release by number, read at the release's versions when asked for; the last `kept` stay in memory."""

    lake: Lake
    versions: dict[str, int]
    model: str  # which base's latents
    reads: Names  # what a sample holds (models/method.py)
    clips: Sequence[str]
    kept: int = 512
    _cache: OrderedDict[str, dict[str, Tensor]] = field(default_factory=OrderedDict, repr=False)

    def __len__(self) -> int:
        return len(self.clips)

    def get(self, indices: Sequence[int]) -> list[dict[str, Tensor]]:
        """Each sample's tensors by name, on the CPU, without what its rows do not have. Damaged where a row is not what was committed."""
        wanted = [self.clips[i] for i in indices]
        missing = sorted(set(wanted) - set(self._cache))
        if missing:
            rows, _ = read_rows(self.lake, self.reads, self.versions, missing, _of_base(next(iter(self.reads)), self.model))
            for clip, found in rows.items():
                for table in self.reads:
                    if table not in found:
                        raise Damaged(f"table {table} has no row of clip {clip} any more: `egomill repair`, then rebuild")
                self._cache[clip] = tensors(self.reads, handed(self.reads, found))
        found = [self._cache[clip] for clip in wanted]
        while len(self._cache) > max(self.kept, len(wanted)):
            self._cache.popitem(last=False)
        return found


def tensors(reads: Names, rows: Mapping[str, Mapping]) -> dict[str, Tensor]:
    """A clip's rows, as a worker gets them, to its tensors by name, without what they do not have."""
    return {name: torch.from_numpy(unpack(rows[table][name])) for table, names in reads.items() for name in names if rows[table].get(name)}


def _of_base(table: str, model: str) -> str:
    return of_base(model) if table == "latents" else ""


def of_base(model: str) -> str:
    """SQL filter: latents of a base, whichever stage made them."""
    return f"({one_of('model', [model])} OR starts_with(model, '{model}/'))"


def clips_of(lake: Lake, versions: dict[str, int], model: str, reads: Names, splits: Sequence[str]) -> list[str]:
    """The clips of these splits of which a release has what a sample reads, sorted. Damaged where a clip is not what was committed."""
    quoted = ", ".join(f"'{s}'" for s in splits)
    chosen = lake.read("clips", None, f"chosen AND split IN ({quoted})", versions["clips"])
    for part in chosen.to_batches(1000):
        for row in part.to_pylist():
            intact("clips", row)  # a clip that is held out must not be learnt from for a flipped bit
    made = (_having(lake, table, names, model, versions[table]) for table, names in reads.items())
    return sorted(set.intersection(set(chosen["clip_id"].to_pylist()), *made))


def _having(lake: Lake, table: str, names: Sequence[str], model: str, version: int) -> set[str]:
    """The clips that have all the named columns, of a `LONG` table rows, that any clip has: of the base."""
    if table not in LONG:
        there = [there for there in (f"{name} IS NOT NULL" for name in names) if lake.count(table, there, version)]
        return set(lake.read(table, ["clip_id"], all_of(*there), version)["clip_id"].to_pylist())
    rows = lake.read(table, ["clip_id", "name"], all_of(_of_base(table, model), one_of("name", names)), version).to_pylist()
    found: dict[str, set[str]] = {}
    for row in rows:
        found.setdefault(row["clip_id"], set()).add(row["name"])
    every = set().union(*found.values())
    return {clip for clip, there in found.items() if there == every}


def spread(takes: Mapping[str, str], count: int) -> list[str]:
    """So many of the clips {clip: its take}, from as many takes as there are: one of each take, then another of each.

    Which ones follows from digests of the names, so that another clip or take changes one of the chosen, if any, as long as there are no
    fewer takes than `count`.
    """
    by_take: dict[str, list[str]] = {}
    for clip in sorted(takes, key=digest):
        by_take.setdefault(takes[clip], []).append(clip)
    rounds = zip_longest(*(by_take[take] for take in sorted(by_take, key=digest)))
    return [clip for turn in rounds for clip in turn if clip is not None][:count]


def stack(samples: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """One batch of samples [B, ...]."""
    return {name: torch.stack([s[name] for s in samples]) for name in samples[0]}
