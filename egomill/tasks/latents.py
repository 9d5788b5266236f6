"""What the transformer is trained on and conditioned with: exo, prior and ego latents, text and image embeddings, one row a clip and base.

Encoded once and kept: training then needs neither videos nor codec. Latents are the mode of the codec's distribution, so that a row depends
on its clip alone. The prior's holes are filled (push-pull) before it is encoded, because a codec smears black holes over their
neighbourhood; how much of each cell was really seen is kept beside it as `cover`.
"""

from __future__ import annotations

from functools import partial

import torch

from egomill.kernels.fill import push_pull
from egomill.models.batch import to_latent
from egomill.models.egox import cover_cells
from egomill.models.embed import embed_image, embed_text
from egomill.schemas.config import Model, Profile
from egomill.schemas.outcome import Rejected
from egomill.schemas.tensors import pack, unpack
from egomill.tasks import video, views, weights
from egomill.tasks.stage import Stage


def stage(profile: Profile) -> Stage:
    """Latents of every chosen clip by the profile's base."""
    revision = weights.revision(profile.model)
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
    """Holds codec and text encoder; a clip's rows in, its latents out."""

    def __init__(self, model: Model) -> None:
        self.tokens = model.text_tokens
        self.parts = weights.load_parts(model, transformer=False)

    def __call__(self, row: dict) -> dict | Rejected:
        clip = row["clips"]
        try:
            exo, ego = views.read_exo(clip), views.read_ego(clip)
        except video.VideoError as error:
            return Rejected("video_undecodable", str(error))
        valid = torch.from_numpy(unpack(row["priors"]["valid"]))
        prior = push_pull(torch.from_numpy(video.decode(row["priors"]["video"])), valid).numpy()
        latents = {name: to_latent(self.parts.vae, frames) for name, frames in (("exo", exo), ("prior", prior), ("ego", ego))}
        broken = [name for name, latent in latents.items() if not latent.isfinite().all()]
        if broken:
            raise ArithmeticError(f"clip {clip['clip_id']}: latents of {', '.join(broken)} are not finite")
        text = embed_text(self.parts.tokenizer, self.parts.text_encoder, [row["captions"]["text"]], self.tokens)[0]
        image = None
        if self.parts.image_encoder is not None:
            image = pack(embed_image(self.parts.image_processor, self.parts.image_encoder, exo[0]).half().cpu().numpy())
        packed = {name: pack(latent.half().numpy()) for name, latent in latents.items()}
        cover = pack(cover_cells(valid[None])[0].half().numpy())
        return {**packed, "cover": cover, "text": pack(text.half().cpu().numpy()), "image": image}
