"""Egocentric video for clips, by an adapter or by the base alone: one row a clip and adapter.

A clip's noise comes from a seed of its own (the profile's seed and the clip's name), on the CPU: the same video whatever else runs, in
whichever order. Only the ego half is decoded and kept, without loss, so that scores are of what the model made.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from egomill.models.latents import to_frames
from egomill.models.method import Names, changed, of, split
from egomill.schemas.config import Profile
from egomill.schemas.fingerprint import digest
from egomill.schemas.outcome import Rejected
from egomill.tasks.lake.stage import Stage
from egomill.tasks.media import video
from egomill.tasks.networks import bases, configs
from egomill.tasks.training import adapters, samples


def stage(profile: Profile, adapter: str, folder: str = "", fetch: Callable[[], str] | None = None) -> Stage:
    """Videos by `adapter`, whose files lie in `folder`; "base" has none. How it is conditioned is as in its training; a variant of it
    ("exo2egosyn@v1+true-first-frame") is conditioned as the method says.

    `fetch` brings the files to a machine that has no such folder, and says where they lie there. ValueError where the adapter is for
    another base or method, or for other rows.
    """
    revision, method = bases.revision(profile.model), of(profile)
    configs.check(profile)
    if folder:
        about = adapters.describe(folder)
        if why := adapters.misfit(about, profile, revision):
            raise ValueError(f"adapter {adapter} cannot be used here: {why}")
        profile = method.following(profile, about)
    variant = method.variant(adapter)
    profile = changed(profile, variant.settings)
    if variant.still:
        raise ValueError(f"{adapter} is scored from what {split(adapter)[0]} made, and generates nothing")
    reads = method.given(profile, variant.truth)
    sampler = profile.generate.model_dump(exclude={"keep_tokens"})
    return Stage(
        name="generations",
        reads={**reads, "clips": ("fps",)},
        config={**method.followed(profile), "sampler": sampler},
        worker=partial(Generator, profile, folder, fetch, reads),
        weights=revision + (adapters.sha256(folder) if folder else ""),
        constants={"adapter": adapter},
        where=samples.of_base(revision),
        also=(method.module,),
    )


def seed_of(seed: int, clip_id: str) -> int:
    """63 bits from the profile's seed and the clip's name."""
    return int(digest(seed, clip_id)[:16], 16) >> 1


class Generator:
    """Holds base and adapter; a clip's rows in, its ego video out."""

    def __init__(self, profile: Profile, folder: str, fetch: Callable[[], str] | None, reads: Names) -> None:
        if folder and fetch and not Path(folder).is_dir():
            folder = fetch()
        self.profile, self.method, self.reads = profile, of(profile), reads
        guided = self.method.guided if profile.generate.guidance > 1 else ()
        self.parts = bases.load(profile.model, *self.method.parts, "vae", *guided)
        self.net = self.method.build(self.parts, profile).to(self.parts.vae.device)
        if folder:
            adapters.load(self.net, folder, bases.revision(profile.model))
        self.net.eval()

    def __call__(self, row: dict) -> dict | Rejected:
        started = time.monotonic()
        clip, device, sampler = row["clips"], self.parts.vae.device, self.profile.generate
        columns = {name: tensor[None] for name, tensor in samples.tensors(self.reads, row).items()}
        seed = seed_of(sampler.seed, clip["clip_id"])
        batch = self.method.batch(columns, self.profile, device)
        latent = self.method.sample(self.net, batch, [torch.Generator().manual_seed(seed)], sampler)[0]
        frames = to_frames(self.parts.vae, latent)
        if frames is None:
            return Rejected("generation_failed", f"seed {seed}: values that are not finite")
        followed = self.method.followed(self.profile)
        return {
            "video": video.encode(frames, clip["fps"], lossless=True),
            "seed": seed,
            "sampler": json.dumps({**sampler.model_dump(exclude={"keep_tokens", "seed"}), **followed}, sort_keys=True),
            "seconds": time.monotonic() - started,
        }
