"""Measures that need trained networks: computed where a folder with the weights is named, and said to be missing otherwise.

Nothing is downloaded and nothing unpickled. LPIPS takes the AlexNet trunk as torchvision names it (`features.0.weight`, ...), in any
.safetensors file of the folder; its linear layers come with the lpips package. CLIP-I takes a folder in the transformers layout.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from egomill.schemas.config import Evaluate
from egomill.schemas.fingerprint import digest, file_sha256

Measure = Callable[[Tensor, Tensor], float]
NO_WEIGHTS = "not computed: no weights"
NOT_BUILT = {
    "fvd": "not computed: a distance between sets of videos, and no I3D network is built in",
    "objects": "not computed: no detector and tracker are built in",
}


def load(settings: Evaluate) -> tuple[dict[str, Measure], dict[str, str]]:
    """Measures by name, and for those that there are none of, why. Both take videos [F, 3, H, W] in 0..1 and give a mean over frames."""
    measures: dict[str, Measure] = {}
    missing: dict[str, str] = {}
    for name, folder, make in (("lpips", settings.lpips, lpips), ("clip_i", settings.clip, clip_image)):
        if not folder:
            missing[name] = NO_WEIGHTS
            continue
        try:
            measures[name] = make(Path(folder))
        except (OSError, ValueError, RuntimeError) as error:
            missing[name] = f"not computed: {folder}: {str(error).strip().splitlines()[0][:200]}"
    for name, folder in (("fvd", settings.fvd), ("objects", settings.objects)):
        missing[name] = NOT_BUILT[name] if folder else NO_WEIGHTS
    return measures, missing


def weights_digest(settings: Evaluate) -> str:
    """Digest of the weight files that are named, so that scores follow them."""
    found = {}
    for name in ("lpips", "clip"):
        folder = getattr(settings, name)
        if folder:
            found[name] = {f.name: file_sha256(f) for f in sorted(Path(folder).glob("*.safetensors"))}
    return digest(found, bool(settings.fvd), bool(settings.objects))


def lpips(folder: Path) -> Measure:
    """LPIPS-Alex v0.1. Errors: ValueError where a layer of the trunk is not in the folder."""
    import contextlib
    import io

    from lpips import LPIPS

    tensors: dict[str, Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        tensors |= load_file(file)
    with contextlib.redirect_stdout(io.StringIO()):
        net = LPIPS(net="alex", pnet_rand=True, verbose=False).eval()
    with torch.no_grad():
        for name, parameter in net.net.named_parameters():  # sliceN.<layer>.weight
            layer = f"features.{name.split('.', 1)[1]}"
            if layer not in tensors or tensors[layer].shape != parameter.shape:
                raise ValueError(f"no AlexNet layer {layer} of shape {tuple(parameter.shape)} in its .safetensors files")
            parameter.copy_(tensors[layer])

    @torch.no_grad()
    def measure(x: Tensor, y: Tensor) -> float:
        return net(x * 2 - 1, y * 2 - 1).mean().item()

    return measure


def clip_image(folder: Path) -> Measure:
    """CLIP-I: cosine of the image embeddings, frame by frame. Errors: OSError where the folder holds no such model."""
    from transformers import CLIPImageProcessor, CLIPVisionModelWithProjection

    model = CLIPVisionModelWithProjection.from_pretrained(folder, local_files_only=True, use_safetensors=True).eval()
    processor = CLIPImageProcessor.from_pretrained(folder, local_files_only=True)

    @torch.no_grad()
    def measure(x: Tensor, y: Tensor) -> float:
        embeds = []
        for video in (x, y):
            frames = [(255 * f.movedim(0, -1)).round().to(torch.uint8).numpy() for f in video]
            pixels = processor(frames, return_tensors="pt")["pixel_values"]
            embeds.append(model(pixel_values=pixels).image_embeds)
        return torch.nn.functional.cosine_similarity(*embeds, dim=-1).mean().item()

    return measure
