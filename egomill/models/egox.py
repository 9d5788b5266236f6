"""EgoX on the stock Wan transformer: the exo|ego input, the loss and the sampler, and the method as a value. No I/O.

The latent picture is [exo | ego], side by side in width (exo left, as the published adapter and the position embedding expect). Channels,
of C that a latent has and cells of t frames (Wan 2.1: 16 and 4, 36 in all):

    C   exo: clean, at every step          ego: noise (1−σ) x + σ ε
    t   mask, one for each of the t frames of a cell
    C   exo: the clean latent again        ego: the prior's latent

Only ego columns are noised, learned and changed (EgoX 3.2). `model_input` is the one place that builds this; loss and sampler both call it.
Latents are [B, C, f, h, w], normalised, float32.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from egomill.kernels.gga_geometry import Geometry
from egomill.models.flow import TIMESTEPS, make_scheduler, set_steps, shifted
from egomill.models.layout import Layout, image_branch
from egomill.models.method import Method
from egomill.schemas.config import Generate, Profile

TARGETS = ("to_q", "to_k", "to_v", "to_out.0")
IMAGE_BRANCH_TEXT = 512  # diffusers' Wan takes the last so many keys for text and what comes before for the image


@dataclass(frozen=True)
class Condition:
    """What is given for a batch: latents of the exo view [B, C, f, h, w_exo] and of the prior [B, C, f, h, w_ego], `cover`
    [B, t, f, h, w_ego] (share of each cell that the prior covers), text embeddings [B, tokens, c] and, for bases with an image branch,
    image embeddings [B, 257, c] (never of the true ego view)."""

    exo: Tensor
    prior: Tensor
    cover: Tensor
    text: Tensor
    image: Tensor | None = None
    mask: str = "coverage"

    def __post_init__(self) -> None:
        (b, _, f, h, _), (bp, _, fp, hp, wp) = self.exo.shape, self.prior.shape
        if (b, f, h) != (bp, fp, hp) or self.cover.shape != (b, self.cover.shape[1], f, h, wp) or len(self.text) != b:
            raise ValueError(
                f"exo {tuple(self.exo.shape)}, prior {tuple(self.prior.shape)}, cover {tuple(self.cover.shape)}, "
                f"text {tuple(self.text.shape)}"
            )


@dataclass(frozen=True)
class Batch:
    """What the net takes: the condition, the directions of guided attention (None: off), and true ego latents [B, C, f, h, w_ego], which
    training alone has."""

    given: Condition
    geometry: Geometry | None = None
    ego: Tensor | None = None


class Net(nn.Module):
    """The transformer with guided attention. `negative` are text embeddings [1, tokens, c] to guide away from, or None."""

    def __init__(self, transformer: Any, shift: float, negative: Tensor | None = None) -> None:
        from egomill.models.attention import install_gga  # takes diffusers along

        super().__init__()
        self.transformer, self.shift, self.negative = transformer, shift, negative
        self.state = install_gga(transformer)

    def forward(self, batch: Batch, generators: Sequence[torch.Generator]) -> Tensor:
        """Loss of every sample [B]. ValueError without ego latents."""
        if batch.ego is None:
            raise ValueError("a loss needs the true ego latents")
        self.state.geometry = batch.geometry  # until the backward pass is done
        return training_loss(self.transformer, batch.given, batch.ego, generators, self.shift)


def cover_cells(valid: Tensor, layout: Layout) -> Tensor:
    """Share of every latent pixel that a prior covers: validity [B, F, H, W] -> [B, t, f, h, w]; frame 0 stands for all t of its cell."""
    share = torch.nn.functional.avg_pool2d(valid.float(), layout.spatial)
    share = torch.cat([share[:, :1].expand(-1, layout.temporal - 1, -1, -1), share], dim=1)
    return share.unflatten(1, (-1, layout.temporal)).transpose(1, 2)


def masks(given: Condition) -> Tensor:
    """The mask channels for both views [B, t, f, h, w_exo + w_ego].

    "paper": exo 1, ego 0 (eq. 3); "egox-released": 1 in latent frame 0 of exo alone; "coverage": exo 1, ego the share the prior covers.
    """
    exo = given.exo.new_ones(given.exo.shape[0], given.cover.shape[1], *given.exo.shape[2:])
    ego = given.cover.to(exo) if given.mask == "coverage" else torch.zeros_like(given.cover, dtype=exo.dtype)
    if given.mask == "egox-released":
        exo[:, :, 1:] = 0
    elif given.mask not in ("paper", "coverage"):
        raise ValueError(f"mask {given.mask!r}: paper, egox-released or coverage")
    return torch.cat([exo, ego], dim=-1)


def model_input(given: Condition, ego: Tensor) -> Tensor:
    """The transformer's input [B, 2C + t, f, h, w_exo + w_ego] for ego latents at whatever noise."""
    latent = torch.cat([given.exo, ego.to(given.exo)], dim=-1)
    condition = torch.cat([given.exo, given.prior], dim=-1)
    return torch.cat([latent, masks(given), condition], dim=1)


def velocity(transformer: Any, given: Condition, ego: Tensor, sigma: Tensor) -> Tensor:
    """The predicted velocity ε − x of the ego columns [B, C, f, h, w_ego] at noise levels sigma [B], float32.

    ValueError where a base with an image branch is given no image, or another number of text tokens than 512: it would split them wrongly.
    """
    if image_branch(getattr(transformer, "config", {})) and (given.image is None or given.text.shape[1] != IMAGE_BRANCH_TEXT):
        image = "no image" if given.image is None else f"{given.image.shape[1]} of the image"
        raise ValueError(
            f"{given.text.shape[1]} text tokens and {image}: the base has an image branch, and takes {IMAGE_BRANCH_TEXT} text tokens "
            f"beside those of an image. Encode latents with model.text_tokens={IMAGE_BRANCH_TEXT}"
        )
    dtype = transformer.dtype
    out = transformer(
        model_input(given, ego).to(dtype),
        (sigma * TIMESTEPS).to(ego.device),
        given.text.to(dtype),
        None if given.image is None else given.image.to(dtype),
        return_dict=False,
    )[0]
    return out[..., given.exo.shape[-1] :].float()


def training_loss(
    transformer: Any, given: Condition, ego: Tensor, generators: Sequence[torch.Generator], shift: float = 1.0, pure: float = 0.0
) -> Tensor:
    """Flow matching on the ego columns: mean |v − (ε − x)|² over each sample [B], float32.

    Each sample draws its noise level and noise from its own generator (CPU), so that order, batch and workers do not matter.
    pure: share of samples drawn at σ = 1, where a one-step sampler starts.
    """
    if len(generators) != len(ego):
        raise ValueError(f"{len(ego)} samples, {len(generators)} generators")
    ego = ego.float()
    draws = torch.stack([torch.rand(2, generator=g) for g in generators]).to(ego.device)
    sigma = torch.where(draws[:, 1] < pure, torch.ones_like(draws[:, 0]), shifted(draws[:, 0], shift))
    noise = torch.stack([torch.randn(ego.shape[1:], generator=g) for g in generators]).to(ego.device)
    level = sigma.view(-1, 1, 1, 1, 1)
    predicted = velocity(transformer, given, (1 - level) * ego + level * noise, sigma)
    return (predicted - (noise - ego)).square().flatten(1).mean(dim=1)


@torch.no_grad()
def sample(
    transformer: Any,
    scheduler: Any,
    given: Condition,
    generators: Sequence[torch.Generator],
    steps: int,
    guidance: float = 1.0,
    negative: Tensor | None = None,
) -> Tensor:
    """Ego latents [B, C, f, h, w_ego] from noise, by a diffusers flow-matching scheduler (Euler or UniPC; its shift is its own setting).

    One generator a clip, on CPU: a clip's result depends on its seed alone. Exo columns never enter the scheduler, which is what a
    velocity of zero there amounts to. guidance > 1 asks for `negative` text embeddings [B or 1, tokens, c].
    """
    if guidance > 1 and negative is None:
        raise ValueError("guidance needs negative text embeddings")
    if len(generators) != len(given.prior):
        raise ValueError(f"{len(given.prior)} clips, {len(generators)} generators")
    set_steps(scheduler, steps, given.exo.device)
    x = torch.stack([torch.randn(given.prior.shape[1:], generator=g) for g in generators]).to(given.exo.device)
    for timestep in scheduler.timesteps:
        sigma = (timestep.float() / TIMESTEPS).expand(len(x))
        v = velocity(transformer, given, x, sigma)
        if guidance > 1 and negative is not None:
            other = velocity(transformer, replace(given, text=negative.expand_as(given.text)), x, sigma)
            v = other + guidance * (v - other)
        x = scheduler.step(v, timestep, x, return_dict=False)[0]
    return x.float()


# -- the method ----------------------------------------------------------------------------------------------------------


def check(profile: Profile, layout: Layout) -> None:
    """ValueError where the base does not take EgoX's channels, or the views' heights differ."""
    wanted, recipe = 2 * layout.channels + layout.temporal, profile.clips
    if layout.inputs != wanted:
        raise ValueError(
            f"the base {profile.model.base} takes {layout.inputs} channels, and EgoX gives {wanted} (exo|ego latents of {layout.channels}, "
            f"{layout.temporal} of mask, the condition): name an image-to-video base with model.base"
        )
    if recipe.exo_size[1] != recipe.ego_size:
        raise ValueError(f"exo view of {recipe.exo_size[1]} px beside an ego view of {recipe.ego_size}: heights must agree")


def build(parts: Any, profile: Profile) -> Net:
    """The net of a base's parts; with a text encoder among them it can be guided."""
    negative = parts.encode_text([""], profile.model.text_tokens).float() if parts.text_encoder is not None else None
    return Net(parts.transformer, profile.train.shift, negative)


def make_batch(tensors: Mapping[str, Tensor], profile: Profile, device: torch.device) -> Batch:
    """Tensors of table latents (float16) and of table directions, [B, ...], to what the net takes, latents in float32."""
    model = profile.model
    latents = {name: tensors[name].to(device).float() for name in ("exo", "prior", "cover", "text")}
    image = tensors["image"].to(device).float() if "image" in tensors else None
    geometry = None
    if model.gga != "off":
        looks = {name: tensors[name].to(device) for name in DIRECTIONS}
        geometry = Geometry(**looks, lambda_g=model.lambda_g, formula=model.gga)
    ego = tensors["ego"].to(device) if "ego" in tensors else None
    return Batch(Condition(**latents, image=image, mask=model.mask), geometry, ego)


def generate(net: Net, batch: Batch, generators: Sequence[torch.Generator], settings: Generate) -> Tensor:
    """See `sample`; scheduler, steps and guidance are the profile's."""
    net.state.geometry = batch.geometry
    scheduler = make_scheduler(settings.scheduler, settings.shift)
    negative = None if net.negative is None else net.negative.to(batch.given.exo.device)
    return sample(net.transformer, scheduler, batch.given, generators, settings.steps, settings.guidance, negative)


def tokens(profile: Profile, layout: Layout) -> dict[str, int]:
    """Tokens of one clip: {frames, exo, ego, all}."""
    recipe = profile.clips
    f, height, width = layout.latents(recipe.frames, *recipe.exo_size[::-1])
    exo, ego = (f * height * w // layout.patch**2 for w in (width, height))
    return {"frames": f, "exo": exo, "ego": ego, "all": exo + ego}


def blank(profile: Profile, layout: Layout, config: Any) -> Batch:
    """A batch of zeros of the profile's size, for a transformer of this configuration."""
    recipe, count, model = profile.clips, profile.train.batch, profile.model
    f, h, w_exo = layout.latents(recipe.frames, *recipe.exo_size[::-1])
    exo, ego = torch.zeros(count, layout.channels, f, h, w_exo), torch.zeros(count, layout.channels, f, h, h)
    text = torch.zeros(count, model.text_tokens, config.text_dim)
    image = torch.zeros(count, 257, config.image_dim) if config.image_dim else None
    given = Condition(exo, torch.zeros_like(ego), torch.zeros(count, layout.temporal, *ego.shape[2:]), text, image)
    if model.gga == "off":
        return Batch(given, None, ego)
    grid_exo, grid_ego = ((count, f, h // layout.patch, w // layout.patch) for w in (w_exo, h))
    points, rays = torch.zeros(*grid_exo, 3), torch.zeros(*grid_ego, 3, dtype=torch.float16)
    seen = torch.ones(grid_exo, dtype=torch.bool), torch.ones(grid_ego, dtype=torch.bool)
    return Batch(given, Geometry(points, seen[0], rays, seen[1], torch.zeros(count, f, 3), model.lambda_g, model.gga), ego)


DIRECTIONS = ("exo_points", "exo_valid", "ego_rays", "ego_valid", "centres")
METHOD = Method(
    name="egox",
    module=__name__,
    stages=("depth", "priors", "directions", "captions", "latents"),
    reads={"latents": ("exo", "prior", "ego", "cover", "text", "image"), "directions": DIRECTIONS},
    truth=("ego",),
    check=check,
    build=build,
    batch=make_batch,
    sample=generate,
    guided=("text",),
    shown=("exo", "prior", "ego"),
    follows=("model.mask", "model.gga", "model.lambda_g", "model.text_tokens"),
    tied=("directions.geometry",),
    references=("prior", "codec"),
    tokens=tokens,
    blank=blank,
)
