"""What GenEgo is trained on and conditioned with, into table latents, every frame a picture of its own, one row a tensor.

By itself: `ego` [4, F, h, w] where there is an ego video, and `text` [77, c], of the clip's caption. Of a source of alignments:
`sparse-SOURCE` and `pose-SOURCE` [4, F, h, w]. The pose map is scaled to [0, 1] and not to [-1, 1], as the released code has it, and goes
through the same codec; latents are its mode, so that a row depends on its clip alone (the released code samples).
"""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
from torch import Tensor

from egomill.models.latents import encode_video, to_latent
from egomill.schemas.config import Profile
from egomill.schemas.outcome import Rejected
from egomill.schemas.tensors import pack
from egomill.tasks.lake.stage import Stage
from egomill.tasks.media import video, views
from egomill.tasks.networks import bases


def stage(profile: Profile, source: str = "") -> Stage | None:
    """Latents of a clip ("": of its ego video and text), or of its maps by a source; none where there are none."""
    if source and (source not in profile.genego.sources or (source == "predicted" and not profile.genego.regressor)):
        return None
    revision = bases.revision(profile.model)
    common = {"name": "latents", "weights": revision, "constants": {"model": f"{revision}/{source}" if source else revision}}
    if source:
        reads = {"sparse": ("video", "pose")}
        return Stage(**common, reads=reads, config={}, worker=partial(Maps, profile, source), where=f"source = '{source}'")
    reads = {"clips": (*views.EGO_COLUMNS,), "captions": ("text",)}
    tokens = {"text_tokens": profile.model.text_tokens}
    return Stage(**common, reads=reads, config=tokens, worker=partial(Target, profile), where="chosen")


class Target:
    """Holds codec and text encoder; a clip in, latents of what is to be made and of its text out."""

    def __init__(self, profile: Profile) -> None:
        self.tokens, self.parts = profile.model.text_tokens, bases.load(profile.model, "vae", "text")

    def __call__(self, row: dict) -> list[dict] | Rejected:
        clip = row["clips"]
        made = {"text": self.parts.encode_text([row["captions"]["text"]], self.tokens)[0].cpu()}
        try:
            if clip["ego_video"]:  # none where it is still to be made
                made["ego"] = to_latent(self.parts.vae, views.read_ego(clip))
        except video.VideoError as error:
            return Rejected("video_undecodable", str(error))
        return rows(clip["clip_id"], made)


class Maps:
    """Holds the codec; a clip's maps in, their latents out."""

    def __init__(self, profile: Profile, source: str) -> None:
        self.vae, self.source = bases.load(profile.model, "vae").vae, source

    def __call__(self, row: dict) -> list[dict]:
        found = row["sparse"]
        pose = torch.from_numpy(video.decode(found["pose"])).to(self.vae.device).movedim(-1, 0).float()[None] / 255
        made = {"sparse": to_latent(self.vae, video.decode(found["video"])), "pose": encode_video(self.vae, pose)[0].cpu()}
        return rows(found["clip_id"], {f"{name}-{self.source}": latent for name, latent in made.items()})


def rows(clip_id: str, made: dict[str, Tensor]) -> list[dict]:
    """Rows of one clip. ArithmeticError where one is not finite."""
    broken = [name for name, tensor in made.items() if not tensor.isfinite().all()]
    if broken:
        raise ArithmeticError(f"clip {clip_id}: {', '.join(broken)} are not finite")
    about = {"clip_id": clip_id, "names": sorted(made)}
    return [{**about, "name": name, "tensor": pack(tensor.half().numpy().astype(np.float16))} for name, tensor in made.items()]
