"""What the transformer is trained on and conditioned with: exo, prior and ego latents, text and image embeddings, one row a tensor.

Encoded once and kept: training then needs neither videos nor codec. Latents are the mode of the codec's distribution, so that a row depends
on its clip alone. The prior's holes are filled (push-pull) before it is encoded, because a codec smears black holes over their
neighbourhood; how much of each cell was really seen is kept beside it as `cover`.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from egomill.models.egox import cover_cells
from egomill.models.latents import to_latent
from egomill.schemas.config import Model, Profile
from egomill.schemas.outcome import Rejected
from egomill.schemas.tensors import pack
from egomill.tasks.lake.stage import Stage
from egomill.tasks.media import video, views
from egomill.tasks.networks import bases, configs


def stage(profile: Profile) -> Stage:
    """Latents of every chosen clip by the profile's base."""
    revision = bases.revision(profile.model)
    return Stage(
        name="latents",
        reads={
            "clips": tuple(dict.fromkeys((*views.EXO_COLUMNS, *views.EGO_COLUMNS))),
            "priors": ("video", "valid"),
            "captions": ("text",),
        },
        config={"text_tokens": profile.model.text_tokens},
        worker=partial(Encoder, profile.model),
        weights=revision,
        constants={"model": revision},
        where="chosen",
    )


class Encoder:
    """Holds codec and text encoder; a clip's rows in, its latents out; no ego latent where there is no ego video."""

    def __init__(self, model: Model) -> None:
        self.tokens, self.layout = model.text_tokens, configs.layout(model)
        self.parts = bases.load(model, "vae", "text", "image")

    def __call__(self, row: dict) -> list[dict] | Rejected:
        clip = row["clips"]
        try:
            pictures = {"exo": views.read_exo(clip)}
            if clip["ego_video"]:  # none where the ego view is still to be made
                pictures["ego"] = views.read_ego(clip)
        except video.VideoError as error:
            return Rejected("video_undecodable", str(error))
        _, valid, pictures["prior"] = views.read_prior(clip, row["priors"])
        latents = {name: to_latent(self.parts.vae, frames) for name, frames in pictures.items()}
        broken = [name for name, latent in latents.items() if not latent.isfinite().all()]
        if broken:
            raise ArithmeticError(f"clip {clip['clip_id']}: latents of {', '.join(broken)} are not finite")
        text = self.parts.encode_text([row["captions"]["text"]], self.tokens)[0]
        image = self.parts.encode_image(torch.from_numpy(pictures["exo"][:1]))  # of the exo view: the true ego view is not to be seen
        made = {**latents, "cover": cover_cells(torch.from_numpy(valid)[None], self.layout)[0], "text": text}
        if image is not None:
            made["image"] = image[0]
        about = {"clip_id": clip["clip_id"], "names": sorted(made)}
        return [{**about, "name": name, "tensor": _half(tensor)} for name, tensor in made.items()]


def _half(tensor: Tensor) -> dict:
    return pack(tensor.half().cpu().numpy())
