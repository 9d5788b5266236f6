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

from egomill.models import attention, batch, egox
from egomill.schemas.config import Profile
from egomill.schemas.fingerprint import digest
from egomill.schemas.outcome import Rejected
from egomill.schemas.tensors import unpack
from egomill.tasks.lake.stage import Stage
from egomill.tasks.media import video
from egomill.tasks.networks import bases
from egomill.tasks.training import adapters

LATENTS = ("exo", "prior", "cover", "text", "image")
DIRECTIONS = ("exo_points", "exo_valid", "ego_rays", "ego_valid", "centres")


def stage(profile: Profile, adapter: str, folder: str = "", fetch: Callable[[], str] | None = None) -> Stage:
    """Videos by `adapter`, whose files lie in `folder`; "base" has none. How it is conditioned is as in its training.

    `fetch` brings the files to a machine that has no such folder, and says where they lie there. ValueError where the adapter is for
    another base or other directions.
    """
    revision = bases.revision(profile.model)
    settings = profile.model.model_dump(include={"mask", "gga", "lambda_g", "text_tokens"})
    if folder:
        about = adapters.describe(folder)
        settings = {name: about[name] for name in settings}
        if why := adapters.misfit(about, profile, revision):
            raise ValueError(f"adapter {adapter} cannot be used here: {why}")
    sampler = profile.generate.model_dump(exclude={"baseline"})
    return Stage(
        name="generations",
        reads={"latents": LATENTS, "directions": DIRECTIONS, "clips": ("fps",)},
        config={**settings, "sampler": sampler},
        worker=partial(Generator, profile, settings, folder, fetch),
        weights=revision + (adapters.sha256(folder) if folder else ""),
        constants={"adapter": adapter},
        where=f"model = '{revision}'",
    )


def seed_of(seed: int, clip_id: str) -> int:
    """63 bits from the profile's seed and the clip's name."""
    return int(digest(seed, clip_id)[:16], 16) >> 1


class Generator:
    """Holds base and adapter; a clip's rows in, its ego video out."""

    def __init__(self, profile: Profile, settings: dict, folder: str, fetch: Callable[[], str] | None = None) -> None:
        if folder and fetch and not Path(folder).is_dir():
            folder = fetch()
        self.settings, self.sampler = settings, profile.generate
        self.parts = bases.load(profile.model, "transformer", "vae", *(["text"] if profile.generate.guidance > 1 else []))
        if folder:
            adapters.load(self.parts.transformer, folder, bases.revision(profile.model))
        self.parts.transformer.eval()
        self.state = attention.install_gga(self.parts.transformer)
        self.negative = None
        if self.sampler.guidance > 1:
            self.negative = self.parts.encode_text([""], settings["text_tokens"]).float()

    def __call__(self, row: dict) -> dict | Rejected:
        started = time.monotonic()
        clip, device = row["clips"], self.parts.transformer.device
        values = {**row["latents"], **row["directions"]}
        columns = {name: torch.from_numpy(unpack(values[name]))[None] for name in (*LATENTS, *DIRECTIONS) if values.get(name)}
        seed = seed_of(self.sampler.seed, clip["clip_id"])
        self.state.geometry = batch.geometry(columns, self.settings["gga"], self.settings["lambda_g"], device)
        latent = egox.sample(
            self.parts.transformer,
            egox.make_scheduler(self.sampler.scheduler, self.sampler.shift),
            batch.condition(columns, self.settings["mask"], device),
            [torch.Generator().manual_seed(seed)],
            self.sampler.steps,
            self.sampler.guidance,
            None if self.negative is None else self.negative.to(device),
        )[0]
        frames = batch.to_frames(self.parts.vae, latent)
        if frames is None:
            return Rejected("generation_failed", f"seed {seed}: values that are not finite")
        return {
            "video": video.encode(frames, clip["fps"], lossless=True),
            "seed": seed,
            "sampler": json.dumps({**self.sampler.model_dump(exclude={"baseline", "seed"}), **self.settings}, sort_keys=True),
            "seconds": time.monotonic() - started,
        }
