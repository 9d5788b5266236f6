"""GenEgo (EgoWorld) on the stock Stable Diffusion inpainting U-Net: input, loss and sampler, and the method as a value. No I/O.

Every frame is a picture of its own. Channels of the U-Net, in the released code's order:

    4   noisy latent of the ego picture
    1   latent of the pose map, through `Reducer` (where inpainting has its mask)
    4   latent of the sparse map (where inpainting has the masked picture): empty is black, there is no mask of it

The reducer is 37 numbers. The released code never trains them, so that they are a fixed random view of the pose; here they are trained
(genego.reducer), and saved with the adapter either way: with other ones it is another model. Text is dropped from a tenth of the samples,
which the released code does not do, and which guidance asks for (our reading). Noise levels and what is predicted are the base's own, as
its scheduler says; sampling is DDIM (the released code: 20 steps, η = 1, guidance 1, 7.5 or 9).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from egomill.models import ego_hands
from egomill.models.layout import Layout
from egomill.models.method import Method, Variant, changed
from egomill.schemas.config import Generate, Profile

SCHEDULE = {"num_train_timesteps": 1000, "beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}  # Stable Diffusion's
SAMPLING = {"clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1}
POSE = 1  # channels that the reducer leaves


@dataclass(frozen=True)
class Batch:
    """Latents of the sparse and of the pose map [B, C, F, h, w], text [B, 77, c], and the true ego latents, which training alone has."""

    sparse: Tensor
    pose: Tensor
    text: Tensor
    ego: Tensor | None = None


class Reducer(nn.Sequential):
    """Pose map's latents [N, C, h, w] to one channel in (0, 1)."""

    def __init__(self, channels: int) -> None:
        super().__init__(nn.Conv2d(channels, POSE, 3, padding=1), nn.Sigmoid())


class Net(nn.Module):
    """U-Net and reducer. `nothing` is the embedding [1, 77, c] of the empty text, or None where only sizes are counted.

    The U-Net is `transformer`, to which LoRA is added, or with genego.full `unet`, which is trained and saved whole.
    """

    def __init__(self, unet: Any, channels: int, profile: Profile, scheduler: Mapping[str, Any] | None, nothing: Tensor | None) -> None:
        super().__init__()
        self.settings, self.nothing = profile.genego, nothing
        self.schedule = {**SCHEDULE, **SAMPLING} if scheduler is None else {k: v for k, v in scheduler.items() if not k.startswith("_")}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(profile.train.seed)
            self.reducer = Reducer(channels).requires_grad_(self.settings.reducer == "trained")
        if self.settings.full:
            self.unet = unet.float().requires_grad_(True)
        else:
            self.transformer = unet

    @property
    def backbone(self) -> Any:
        return self.unet if self.settings.full else self.transformer

    def forward(self, batch: Batch, generators: Sequence[torch.Generator]) -> Tensor:
        """Loss of every sample [B]. ValueError without ego latents."""
        if batch.ego is None:
            raise ValueError("a loss needs the true ego latents")
        return training_loss(self, batch, generators)


def noise_schedule(net: Net) -> Any:
    """The base's noise levels, as diffusers has them for training."""
    from diffusers import DDPMScheduler

    return DDPMScheduler.from_config(net.schedule)


def _frames(latents: Tensor) -> Tensor:
    """[B, C, F, h, w] -> [B·F, C, h, w]."""
    return latents.transpose(1, 2).flatten(0, 1)


def condition(net: Net, batch: Batch) -> Tensor:
    """The channels beside the noisy latent, [B·F, 1 + C, h, w], float32; what the settings leave out is zero."""
    pose, sparse = net.reducer(_frames(batch.pose)) * net.settings.pose, _frames(batch.sparse) * net.settings.sparse
    return torch.cat([pose, sparse], dim=1)


def without_text(net: Net, text: Tensor, where: Tensor) -> Tensor:
    """The texts [B, 77, c], that of the empty prompt `where` [B]."""
    if net.nothing is None:  # only counted
        return text
    return torch.where(where.to(text.device)[:, None, None], net.nothing.to(text), text)


def predict(net: Net, noisy: Tensor, given: Tensor, timesteps: Tensor, text: Tensor) -> Tensor:
    """What the U-Net makes [N, C, h, w] of noisy latents and their condition, at timesteps [N], float32."""
    dtype = net.backbone.dtype
    found = net.backbone(torch.cat([noisy, given], dim=1).to(dtype), timesteps, text.to(dtype), return_dict=False)[0]
    return found.float()


def training_loss(net: Net, batch: Batch, generators: Sequence[torch.Generator]) -> Tensor:
    """Mean squared error of the noise, or of the velocity where the base predicts that, of each sample [B], float32.

    Each sample draws from its own generator (CPU): whether it is told its text, time step and noise of each of its frames.
    """
    assert batch.ego is not None
    if len(generators) != len(batch.ego):
        raise ValueError(f"{len(batch.ego)} samples, {len(generators)} generators")
    ego, (b, _, f, _, _) = batch.ego.float(), batch.ego.shape
    draws = torch.stack([torch.rand(1 + 2 * f, generator=g) for g in generators])
    noise = _frames(torch.stack([torch.randn(ego.shape[1:], generator=g) for g in generators])).to(ego)
    scheduler = noise_schedule(net)
    total = scheduler.config.num_train_timesteps
    steps = torch.where(draws[:, 1 + f :] < net.settings.pure, total - 1, (draws[:, 1 : 1 + f] * total).long().clamp_max(total - 1))
    steps = steps.flatten().to(ego.device)
    clean = _frames(ego)
    untold = torch.ones(b, dtype=torch.bool) if not net.settings.text else draws[:, 0] < net.settings.drop
    text = without_text(net, batch.text, untold).repeat_interleave(f, dim=0)
    found = predict(net, scheduler.add_noise(clean, noise, steps), condition(net, batch), steps, text)
    kind = scheduler.config.prediction_type
    target = noise if kind == "epsilon" else scheduler.get_velocity(clean, noise, steps) if kind == "v_prediction" else clean
    return (found - target).square().flatten(1).mean(dim=1).unflatten(0, (b, f)).mean(dim=1)


@torch.no_grad()
def sample(net: Net, batch: Batch, generators: Sequence[torch.Generator], settings: Generate) -> Tensor:
    """Ego latents [B, C, F, h, w] from noise, by DDIM with the base's noise levels and genego.eta.

    One generator a clip, on CPU: a clip's result depends on its seed alone. guidance > 1 turns away from what the empty text gives; maps
    stay.
    """
    from diffusers import DDIMScheduler

    b, c, f, h, w = batch.sparse.shape
    if len(generators) != b:
        raise ValueError(f"{b} clips, {len(generators)} generators")
    device, own = batch.sparse.device, net.settings

    def drawn() -> Tensor:
        each = [torch.randn((c, 1 if own.same_noise else f, h, w), generator=g).expand(c, f, h, w) for g in generators]
        return _frames(torch.stack(each)).to(device)

    scheduler: Any = DDIMScheduler.from_config(net.schedule)
    scheduler.set_timesteps(settings.steps, device=device)
    given, x = condition(net, batch), drawn()
    told = without_text(net, batch.text, torch.full((b,), not own.text))
    texts = [told] if settings.guidance <= 1 else [told, without_text(net, batch.text, torch.ones(b, dtype=torch.bool))]
    for number, timestep in enumerate(scheduler.timesteps):
        found = [predict(net, x, given, timestep.expand(len(x)), text.repeat_interleave(f, dim=0)) for text in texts]
        out = found[0] if len(found) == 1 else found[1] + settings.guidance * (found[0] - found[1])
        last = number + 1 == len(scheduler.timesteps)  # the noise of the last step would stay
        fresh = {} if last or own.eta == 0 else {"eta": own.eta, "variance_noise": drawn()}
        x = scheduler.step(out, timestep, x, return_dict=False, **fresh)[0]
    return x.unflatten(0, (b, f)).transpose(1, 2).float()


RELEASED = "model.diffusion_model.", "channel_reducer."  # how the released code names its U-Net and its reducer


def released(tensors: Mapping[str, Tensor], profile: Profile, config: Mapping[str, Any]) -> dict[str, Tensor]:
    """The released code's checkpoint (latent diffusion's names) to the net's own tensors, for a U-Net of this configuration; codec and text
    encoder, which it does not change, are the base's. ValueError where settings, names or shapes do not go with it.
    """
    from diffusers import UNet2DConditionModel
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint

    if not profile.genego.full:
        raise ValueError("the released model is a whole U-Net: set genego.full=true and train.targets=[]")
    with torch.device("meta"):
        wanted = {name: tuple(t.shape) for name, t in UNet2DConditionModel(**config).state_dict().items()}
    unet = {name: t for name, t in tensors.items() if name.startswith(RELEASED[0])}
    try:
        found = convert_ldm_unet_checkpoint(unet, {"layers_per_block": 2, **config})
    except (KeyError, IndexError) as error:
        raise ValueError(f"the U-Net in it is no latent diffusion's: {error} is missing") from None
    off = sorted(wanted.keys() ^ found.keys()) or sorted(name for name, shape in wanted.items() if tuple(found[name].shape) != shape)
    if off:
        raise ValueError(f"the U-Net in it is not of the base's size: {', '.join(off[:3])}")
    reducer = {f"reducer.{name.removeprefix(RELEASED[1])}": t for name, t in tensors.items() if name.startswith(RELEASED[1])}
    own = {f"reducer.{name}": tuple(t.shape) for name, t in Reducer(config["out_channels"]).state_dict().items()}
    if {name: tuple(t.shape) for name, t in reducer.items()} != own:
        raise ValueError(f"there is no channel_reducer of 37 numbers in it: {', '.join(reducer) or 'nothing of that name'}")
    return {**{f"unet.{name}": t.float() for name, t in found.items()}, **{name: t.float() for name, t in reducer.items()}}


# -- the method ----------------------------------------------------------------------------------------------------------


def check(profile: Profile, layout: Layout) -> None:
    """ValueError where the base is no inpainter of pictures, or training is to do two things at once."""
    wanted = 2 * layout.channels + POSE
    if layout.temporal != 1 or layout.inputs != wanted:
        raise ValueError(
            f"the base {profile.model.base} takes {layout.inputs} channels and {layout.temporal} frames a latent frame, and GenEgo gives "
            f"{wanted} of single pictures: name a Stable Diffusion inpainting base with model.base"
        )
    if profile.genego.full == bool(profile.train.targets):
        raise ValueError(
            "either the whole U-Net is trained (genego.full=true and train.targets=[]), or LoRA on the layers of train.targets"
        )
    ego_hands.check(profile, layout)


def build(parts: Any, profile: Profile) -> Net:
    """The net of a base's parts."""
    nothing = None
    if getattr(parts, "text_encoder", None) is not None:
        nothing = parts.encode_text([""], profile.model.text_tokens).float().cpu()
    scheduler = getattr(parts, "scheduler", None)
    return Net(parts.transformer, parts.layout.channels, profile, None if scheduler is None else scheduler.config, nothing)


def make_batch(tensors: Mapping[str, Tensor], profile: Profile, device: torch.device) -> Batch:
    """Tensors of table latents (float16), [B, ...], to what the net takes, in float32; maps of whichever source they are."""
    found = {name.partition("-")[0]: tensor.to(device).float() for name, tensor in tensors.items()}
    return Batch(found["sparse"], found["pose"], found["text"], found.get("ego"))


def tokens(profile: Profile, layout: Layout) -> dict[str, int]:
    """Latent pixels of one clip: {frames, all}."""
    f, h, w = layout.latents(profile.clips.frames, profile.clips.ego_size, profile.clips.ego_size)
    return {"frames": f, "all": f * h * w}


def blank(profile: Profile, layout: Layout, config: Any) -> Batch:
    """A batch of zeros of the profile's size."""
    size, count = profile.clips.ego_size, profile.train.batch
    latents = torch.zeros(count, layout.channels, *layout.latents(profile.clips.frames, size, size))
    text = torch.zeros(count, profile.model.text_tokens, config.cross_attention_dim)
    return Batch(latents, torch.zeros_like(latents), text, torch.zeros_like(latents))


def requested(profile: Profile) -> Profile:
    """The profile of a request: of one source of alignments, and without what only informs."""
    own = profile.genego
    scale = "as-is" if own.scale == "measured" else own.scale
    return changed(profile, {"genego.sources": (own.given,), "genego.trained": own.given, "genego.scale": scale})


SOURCES = ("calibrated", "annotated", "jittered", "predicted")
FOLLOWS = ("reducer", "full", "sparse", "pose", "text")
METHOD = Method(
    name="genego",
    module=__name__,
    stages=(
        *("depth", "captions", "hands", "scales", "ego_hands"),
        *(f"{table}/{source}" for table in ("alignments", "sparse", "picture_latents") for source in SOURCES),
        "picture_latents",
    ),
    reads={"latents": ("ego", "text", "sparse-*", "pose-*")},
    by=("genego.trained", "genego.given"),
    truth=("ego",),
    check=check,
    build=build,
    batch=make_batch,
    sample=sample,
    parts=("transformer", "scheduler", "text"),
    shown=("ego",),
    section="genego",
    follows=tuple(f"genego.{name}" for name in FOLLOWS),
    references=("sparse", "codec"),
    released=released,
    measured=("fid", "clip_score", "pa_mpjpe"),
    variants={"calibrated": Variant({"genego.given": "calibrated"})},
    path=False,
    requested=requested,
    needs={"genego.regressor": ego_hands.overrides},
    pretraining="pretrain_pictures",
    tokens=tokens,
    blank=blank,
)
