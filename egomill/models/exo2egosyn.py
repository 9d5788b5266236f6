"""Exo2EgoSyn on the stock Wan transformer (arXiv 2511.20186): net, loss, sampler, and the method as a value. No I/O.

Four exo videos and the head's path in, no text, no true ego picture. What the paper says: Align predicts the latent of the first ego frame,
so that a model that continues pictures starts in the ego view (models/align.py); tokens of the exo videos stand where the text stood
(models/view_tokens.py); rays say where every ego pixel looks in every exo camera's frame (models/ray_fusion.py, kernels/rays.py). What it
leaves open, and is our reading here: which Wan 2.2 base, layouts, what is trained when, and all settings of section `exo2egosyn`.

A base takes the given frame in one of two ways, which its channels tell:

    C in, C out           (Wan 2.2 TI2V)    latent frame 0 is the given frame, and its tokens have timestep 0
    2C + t in, C out      (Wan I2V)         [x | mask | condition], one timestep; frame 0 of x is the given frame at the noise of the others

In both frame 0 is Align's from beginning to end: it is no part of the loss, and never enters the scheduler. Latents are [B, C, f, h, w],
normalised, float32.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from egomill.kernels.rays import CHANNELS
from egomill.models.align import PATCH, Align
from egomill.models.flow import TIMESTEPS, make_scheduler, set_steps, shifted
from egomill.models.latents import decode_video, encode_video
from egomill.models.layout import Layout
from egomill.models.method import Method, Phase, Variant
from egomill.schemas.config import Generate, Profile

FOLDS = 2


@dataclass(frozen=True)
class Batch:
    """What the net takes: latents of the exo views [B, V, C, f, h, w] in the order of the clip, which of them there are [B, V] bool
    (None: all), Plücker maps [B, 6tV + 1, f, h, w] with the views in that order, the take's fold [B] (0 or 1: the Align of that number has
    not seen it), and true ego latents [B, C, f, h, w], which training alone has."""

    exo: Tensor
    seen: Tensor | None
    rays: Tensor
    fold: Tensor
    ego: Tensor | None = None


@dataclass(frozen=True)
class Given:
    """What stays the same at all noise levels: the first frame [B, C, 1, h, w] (None: there is none), its noise (of the layouts that noise
    it), the condition and mask channels of a 2C + t base [B, C + t, f, h, w], and tokens [B, N, D]."""

    frame: Tensor | None
    noise: Tensor | None
    condition: Tensor | None
    tokens: Tensor


class Net(nn.Module):
    """Align twice, once for each half of the takes; tokens and rays around the transformer. `phase` says what is trained (see PHASES)."""

    def __init__(self, parts: Any, profile: Profile) -> None:
        from egomill.models import ray_fusion, view_tokens  # take diffusers along

        super().__init__()
        settings, views, layout = profile.exo2egosyn, profile.clips.views, parts.layout
        self.settings, self.layout, self.shift, self.phase = settings, layout, profile.train.shift, "rays"
        self.transformer, self.vae = parts.transformer, (getattr(parts, "vae", None),)  # in a tuple: no part of the net
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(profile.train.seed)
            sizes = settings.align_width, settings.align_heads, settings.align_depth
            self.align = nn.ModuleList(Align(layout.channels, views, *sizes) for _ in range(FOLDS))
            self.tokens = view_tokens.ViewTokens(self.transformer, layout.channels, views)
            self.attention = view_tokens.install(self.transformer)
            if settings.rays:
                self.rays = ray_fusion.RayFusion(self.transformer, CHANNELS * layout.temporal * views + 1, settings.ray_width)
        self.ready = False  # before an Align has learnt, the given frame is the exo view's
        self.register_load_state_dict_post_hook(lambda net, _: setattr(net, "ready", True))

    def forward(self, batch: Batch, generators: Sequence[torch.Generator]) -> Tensor:
        """Loss of every sample [B], of the present phase. ValueError without ego latents."""
        if batch.ego is None:
            raise ValueError("a loss needs the true ego latents")
        self.ready = True
        if self.training and self.settings.drop_views:
            batch = fewer(batch, torch.stack([torch.rand(batch.exo.shape[1], generator=g) for g in generators]) < self.settings.drop_views)
        return align_loss(self, batch) if self.phase == "align" else training_loss(self, batch, generators)


def fewer(batch: Batch, dropped: Tensor) -> Batch:
    """The batch without the views `dropped` [B, V], so that fewer than were trained with work too; one view at least stays as it was."""
    seen = torch.ones_like(dropped) if batch.seen is None else batch.seen.to(dropped.device)
    kept = seen & ~dropped
    kept = torch.where(kept.any(dim=1, keepdim=True), kept, seen).to(batch.exo.device)
    per = (batch.rays.shape[1] - 1) // kept.shape[1]
    shown = torch.cat([kept.repeat_interleave(per, dim=1), kept.new_ones(len(kept), 1)], dim=1)
    return replace(batch, seen=kept, rays=batch.rays * shown[:, :, None, None, None])


def align_loss(net: Net, batch: Batch) -> Tensor:
    """Mean (ẑ − z₀)² [B] of the Align that learns from each sample's fold, while the other one is not to see it; in evaluation of the other
    one, whose frame is the one that is given."""
    assert batch.ego is not None
    first, truth = batch.exo[:, :, :, 0], batch.ego[:, :, 0]
    both = torch.stack([(align(first, batch.seen) - truth).square().flatten(1).mean(dim=1) for align in net.align], dim=1)
    others = batch.fold[:, None] != torch.arange(FOLDS, device=both.device)
    return torch.where(others == net.training, both, 0).sum(dim=1)


@torch.no_grad()
def first_frame(net: Net, batch: Batch) -> Tensor | None:
    """The given frame [B, C, 1, h, w]: by the Align that has not seen the take; of takes that neither has seen, by that of their fold.

    An Align that has learnt nothing, since all training takes were of one fold, says nothing but zero: the other one stands in for it.
    exo2egosyn.frame = truth gives the true frame where it is known, which is in training.
    """
    kind = net.settings.frame
    if kind == "exo" or not net.ready:  # an untuned base starts from the exo view, whatever adapters do
        chosen = torch.zeros_like(batch.fold) if batch.seen is None else batch.seen.int().argmax(dim=1)  # the first that there is
        return batch.exo[torch.arange(len(chosen), device=chosen.device), chosen, :, :1]
    if kind == "none":
        return None
    if kind == "truth" and batch.ego is not None:
        return batch.ego[:, :, :1]
    found = torch.stack([align(batch.exo[:, :, :, 0], batch.seen) for align in net.align], dim=1)
    of_fold, row = batch.fold.long(), torch.arange(len(found), device=found.device)
    blank = ~found.flatten(2).any(dim=2)
    return found[row, torch.where(blank[row, of_fold], 1 - of_fold, of_fold)][:, :, None]


def prepare(net: Net, batch: Batch, shown: Tensor, noise: Tensor | None = None) -> Given:
    """What a pass of the transformer takes beside the noisy latents; sets what its hooks read. `shown` [B]: whose exo tokens are told."""
    b, v, _, f, h, w = batch.exo.shape
    tokens = net.tokens(batch.exo, shown & net.settings.tokens)
    net.attention.known = None if batch.seen is None else batch.seen.repeat_interleave(tokens.shape[1] // v, dim=1)
    if net.settings.rays:
        net.rays.maps = batch.rays
    frame = first_frame(net, batch)
    if net.layout.inputs == net.layout.channels:
        return Given(frame, noise, None, tokens)
    mask = batch.exo.new_zeros(b, net.layout.temporal, f, h, w)
    if frame is None:
        return Given(None, noise, torch.cat([mask, torch.zeros_like(batch.exo[:, 0])], dim=1), tokens)
    mask[:, :, 0] = 1
    return Given(frame, noise, torch.cat([mask, continued(net, frame, f)], dim=1), tokens)


@torch.no_grad()
def continued(net: Net, frame: Tensor, f: int) -> Tensor:
    """Latents [B, C, f, h, w] of the picture whose latent is `frame`, followed by grey pictures, as Wan's image-to-video pipelines encode
    what they are given. A codec without memory between its cells leaves the frame as it is; others decode and encode it."""
    (vae,), (b, _, _, h, w) = net.vae, frame.shape
    if vae is None:  # only counted
        return frame.expand(-1, -1, f, -1, -1)
    size = net.layout.spatial
    grey = frame.new_zeros(b, 3, (f - 1) * net.layout.temporal + 1, h * size, w * size)
    if not getattr(vae, "memory", True):
        return torch.cat([frame, encode_video(vae, grey[:1])[:, :, 1:].to(frame).expand(b, -1, -1, -1, -1)], dim=2)
    grey[:, :, :1] = decode_video(vae, frame).to(frame)
    return encode_video(vae, grey).to(frame)


def velocity(net: Net, given: Given, x: Tensor, sigma: Tensor, level: Tensor | float = 0.0) -> Tensor:
    """The predicted velocity ε − z [B, C, f, h, w] at noise levels sigma [B], float32. Frame 0 of x is replaced where a frame is given; at
    noise `level` in the layout that takes it clean."""
    transformer, layout = net.transformer, net.layout
    at = sigma.to(x)
    told = at if given.condition is not None else torch.as_tensor(level).to(x).expand(len(x))  # the level of frame 0
    if given.frame is not None:
        of_frame = told.view(-1, 1, 1, 1, 1)
        noisy = given.frame if given.noise is None else (1 - of_frame) * given.frame + of_frame * given.noise
        x = torch.cat([noisy.to(x), x[:, :, 1:]], dim=2)
    time = at * TIMESTEPS
    if given.condition is not None:
        x = torch.cat([x, given.condition.to(x)], dim=1)
    elif given.frame is not None:
        per, f = x.shape[3] * x.shape[4] // layout.patch**2, x.shape[2]
        time = torch.cat([(told * TIMESTEPS)[:, None].expand(-1, per), time[:, None].expand(-1, per * (f - 1))], dim=1)
    out = transformer(x.to(transformer.dtype), time, given.tokens.to(transformer.dtype), return_dict=False)[0]
    return out.float()


def training_loss(net: Net, batch: Batch, generators: Sequence[torch.Generator]) -> Tensor:
    """Flow matching on the frames after the given one: mean |v − (ε − z)|² of each sample [B], float32; on all where none is given.

    Each sample draws from its own generator (CPU): noise level, whether its exo tokens are told, and the noise. With exo2egosyn.refine
    frame 0 is learnt too, on the true one at levels up to that: sampling begins there with the predicted one, whose blur the noise hides.
    """
    assert batch.ego is not None
    if len(generators) != len(batch.ego):
        raise ValueError(f"{len(batch.ego)} samples, {len(generators)} generators")
    ego = batch.ego.float()
    draws = torch.stack([torch.rand(3, generator=g) for g in generators]).to(ego.device)
    noise = torch.stack([torch.randn(ego.shape[1:], generator=g) for g in generators]).to(ego.device)
    sigma = shifted(draws[:, 0], net.shift)
    given = prepare(net, batch, draws[:, 1] >= net.settings.drop, noise[:, :, :1])
    level, refine = sigma.view(-1, 1, 1, 1, 1), net.settings.refine
    if refine and given.frame is not None:
        given = replace(given, frame=ego[:, :, :1])
    predicted = velocity(net, given, (1 - level) * ego + level * noise, sigma, refine * draws[:, 2])
    first = 0 if given.frame is None or refine else 1
    return (predicted - (noise - ego))[:, :, first:].square().flatten(1).mean(dim=1)


@torch.no_grad()
def sample(net: Net, batch: Batch, generators: Sequence[torch.Generator], settings: Generate) -> Tensor:
    """Ego latents [B, C, f, h, w]: the given frame, and what follows from noise.

    One generator a clip, on CPU: a clip's result depends on its seed alone. guidance > 1 turns away from what the model makes without the
    exo tokens; frame and rays stay, so that only the exo content is stressed. With exo2egosyn.refine the frame begins at that noise level
    and is refined from there on.
    """
    b, _, c, f, h, w = batch.exo.shape
    if len(generators) != b:
        raise ValueError(f"{b} clips, {len(generators)} generators")
    device = batch.exo.device
    x = torch.stack([torch.randn((c, f, h, w), generator=g) for g in generators]).to(device)
    told = torch.ones(b, dtype=torch.bool, device=device)
    passes = [prepare(net, batch, told, x[:, :, :1])]
    if settings.guidance > 1:
        passes.append(replace(passes[0], tokens=net.tokens(batch.exo, ~told)))
    caches: list[dict | None] = [{} if settings.keep_tokens else None for _ in passes]
    frame, start, refine = passes[0].frame, x[:, :, :1], net.settings.refine
    scheduler = make_scheduler(settings.scheduler, settings.shift)
    set_steps(scheduler, settings.steps, device)
    first = 0 if frame is None else 1
    level, moving = refine, None if frame is None or not refine else (1 - refine) * frame + refine * start
    rest = x[:, :, first:]
    sigmas = [*(t.item() / TIMESTEPS for t in scheduler.timesteps), 0.0]
    for number, timestep in enumerate(scheduler.timesteps):
        sigma = (timestep.float() / TIMESTEPS).expand(b)
        found = []
        for given, cache in zip(passes, caches, strict=True):
            net.attention.kept = cache
            here = given if moving is None else replace(given, frame=moving, noise=None)
            whole = rest if frame is None else torch.cat([start, rest], dim=2)
            found.append(velocity(net, here, whole, sigma, level))
        predicted = found[0] if len(found) == 1 else found[1] + settings.guidance * (found[0] - found[1])
        if moving is not None and sigmas[number + 1] < level:
            moving, level = moving + (sigmas[number + 1] - level) * predicted[:, :, :1], sigmas[number + 1]
        rest = scheduler.step(predicted[:, :, first:], timestep, rest, return_dict=False)[0]
    net.attention.kept = None
    if frame is None:
        return rest.float()
    return torch.cat([frame if moving is None else moving, rest], dim=2).float()


# -- the method ----------------------------------------------------------------------------------------------------------

PHASES = (
    Phase("align", 0.3, ("align.",)),
    Phase("tokens", 0.4, ("transformer.", "tokens.")),
    Phase("rays", 0.3, ("transformer.", "tokens.", "rays.")),
)


def check(profile: Profile, layout: Layout) -> None:
    """ValueError where the base's channels are of neither layout, or the pictures are not of one size."""
    recipe, settings, c = profile.clips, profile.exo2egosyn, layout.channels
    if layout.inputs not in (c, 2 * c + layout.temporal):
        raise ValueError(
            f"the base {profile.model.base} takes {layout.inputs} channels; Exo2EgoSyn continues a given frame, with a base that takes {c} "
            f"(text-and-image-to-video) or {2 * c + layout.temporal} (image-to-video): name one with model.base"
        )
    if set(recipe.exo_size) != {recipe.ego_size}:
        raise ValueError(
            f"exo views of {recipe.exo_size[0]}x{recipe.exo_size[1]} px beside an ego view of {recipe.ego_size}: Align compares places of "
            f"one grid, so set clips.exo_size=[{recipe.ego_size},{recipe.ego_size}]"
        )
    if layout.image_branch:
        raise ValueError(
            f"the base {profile.model.base} has an image branch, whose attention takes the last 512 tokens for a text, which exo tokens "
            "are not: name a base without one (Wan 2.2) with model.base"
        )
    if layout.patch != PATCH:
        raise ValueError(f"the base {profile.model.base} makes tokens of {layout.patch} latent pixels, and Align of {PATCH}")
    if settings.refine and layout.inputs != c:
        raise ValueError("exo2egosyn.refine asks for timesteps of single tokens, which an image-to-video base does not know: set it to 0")


def make_batch(tensors: Mapping[str, Tensor], profile: Profile, device: torch.device) -> Batch:
    """Tensors of table latents (float16), [B, ...], to what the net takes, latents and maps in float32."""
    found = {name: tensors[name].to(device).float() for name in ("exo", "rays", "ego") if name in tensors}
    seen = None if tensors["seen"].all() else tensors["seen"].bool().to(device)
    return Batch(seen=seen, fold=tensors["fold"].flatten().long().to(device), **found)


def tokens(profile: Profile, layout: Layout) -> dict[str, int]:
    """Tokens of one clip: {frames, ego (through all blocks), exo (that they attend to), all}."""
    recipe = profile.clips
    f, h, w = layout.latents(recipe.frames, recipe.ego_size, recipe.ego_size)
    ego = f * h * w // layout.patch**2
    return {"frames": f, "exo": recipe.views * ego, "ego": ego, "all": (recipe.views + 1) * ego}


def blank(profile: Profile, layout: Layout, config: Any) -> Batch:
    """A batch of zeros of the profile's size."""
    count, views = profile.train.batch, profile.clips.views
    f, h, w = layout.latents(profile.clips.frames, profile.clips.ego_size, profile.clips.ego_size)
    exo, rays = torch.zeros(count, views, layout.channels, f, h, w), torch.zeros(count, CHANNELS * layout.temporal * views + 1, f, h, w)
    return Batch(exo, None, rays, torch.zeros(count, dtype=torch.long), torch.zeros_like(exo[:, 0]))


FOLLOWS = ("align_width", "align_heads", "align_depth", "ray_width", "frame", "tokens", "rays", "refine")
METHOD = Method(
    name="exo2egosyn",
    module=__name__,
    stages=("view_latents",),
    reads={"latents": ("exo", "seen", "rays", "fold", "ego")},
    truth=("ego",),
    check=check,
    build=Net,
    batch=make_batch,
    sample=sample,
    shown=("ego",),
    section="exo2egosyn",
    follows=tuple(f"exo2egosyn.{name}" for name in FOLLOWS),
    told=("fold",),
    tied=("exo2egosyn.metres", "clips.views"),
    phases=PHASES,
    given_frames=1,
    references=("codec",),
    variants={
        "first-frame-repeated": Variant(still=True),
        "true-first-frame": Variant({"exo2egosyn.frame": "truth", "exo2egosyn.refine": 0.0}, truth=True),
    },
    tokens=tokens,
    blank=blank,
)
