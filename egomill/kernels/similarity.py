"""How near one video is to another, over the whole picture or over a region, without any network.

PSNR and SSIM look at pixels and blur in their favour; HaarPSI compares wavelet coefficients and punishes blur. All three can be taken over
a region: a plain library gives one number a picture, and what matters here is how well a model fills what its input left empty.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

CAP = 100.0  # dB, for equal pictures: a table holds no infinity


def psnr(x: Tensor, y: Tensor, region: Tensor | None = None) -> float | None:
    """Peak signal-to-noise ratio in dB of x against y [F, 3, H, W] in 0..1, mean square over region [F, H, W]; None where empty."""
    square = (x - y).double().square().mean(dim=1)
    if region is not None:
        square = square[region]
    if not square.numel():
        return None
    return min(CAP, -10 * math.log10(max(square.mean().item(), 1e-12)))


def ssim(x: Tensor, y: Tensor, region: Tensor | None = None) -> float | None:
    """Structural similarity (Wang et al. 2004: Gaussian window of 11 px, sigma 1.5, per channel, no down-scaling), mean over the region."""
    window = torch.exp(-((torch.arange(11, dtype=x.dtype, device=x.device) - 5) ** 2) / (2 * 1.5**2))
    window = window / window.sum()

    def blur(z: Tensor) -> Tensor:
        flat = z.reshape(-1, 1, *z.shape[-2:])
        flat = F.conv2d(F.pad(flat, (5, 5, 5, 5), mode="reflect"), window.view(1, 1, 1, 11))
        return F.conv2d(flat, window.view(1, 1, 11, 1)).reshape(z.shape)

    mx, my = blur(x), blur(y)
    vx, vy, cov = blur(x * x) - mx * mx, blur(y * y) - my * my, blur(x * y) - mx * my
    c1, c2 = 0.01**2, 0.03**2
    local = (((2 * mx * my + c1) * (2 * cov + c2)) / ((mx * mx + my * my + c1) * (vx + vy + c2))).mean(dim=1)
    values = local if region is None else local[region]
    return values.mean().item() if values.numel() else None


def haarpsi(x: Tensor, y: Tensor, region: Tensor | None = None) -> float | None:
    """HaarPSI (Reisenhofer et al. 2018, c = 30, alpha = 4.2, on half-size pictures) of x against y [F, 3, H, W] in 0..1, mean over frames.

    The index is a weighted mean of local similarities; over a region [F, H, W] the weights outside count zero (half-size cells with at
    least half of their pixels inside). None where the region is empty in every frame; frames in which it is empty are left out.
    """
    x, y = _half_yiq(x), _half_yiq(y)
    details_x, details_y = _haar(x[:, :1]), _haar(y[:, :1])  # [F, 3 scales, 2 orientations, h, w]
    coarse = torch.maximum(details_x[:, 2], details_y[:, 2])  # weights [F, 2, h, w]
    fine = _alike(details_x[:, :2], details_y[:, :2]).mean(dim=1)  # [F, 2, h, w]
    chroma = _alike(_box(x[:, 1:]), _box(y[:, 1:])).mean(dim=1, keepdim=True)
    similarity = torch.cat([fine, chroma], dim=1)
    weights = torch.cat([coarse, coarse.mean(dim=1, keepdim=True)], dim=1)
    if region is not None:
        inside = F.avg_pool2d(_even(region[:, None].to(x.dtype)), 2) >= 0.5
        weights = weights * inside
        used = inside.flatten(1).any(dim=1)
        if not used.any():
            return None
        similarity, weights = similarity[used], weights[used]
    eps = torch.finfo(x.dtype).eps
    score = ((similarity * 4.2).sigmoid() * weights).sum(dim=(1, 2, 3)) + eps
    score = (score / (weights.sum(dim=(1, 2, 3)) + eps)).clamp(max=1 - 1e-7)
    return (torch.log(score / (1 - score)) / 4.2).square().mean().item()


def _half_yiq(x: Tensor) -> Tensor:
    matrix = torch.tensor([[0.299, 0.587, 0.114], [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]], dtype=x.dtype, device=x.device)
    return F.avg_pool2d(_even(torch.einsum("ij,fjhw->fihw", matrix, x * 255)), 2)


def _even(x: Tensor) -> Tensor:
    return F.pad(x, (0, x.shape[-1] % 2, 0, x.shape[-2] % 2))


def _haar(luma: Tensor) -> Tensor:
    """|Haar coefficients| [F, scale, orientation, h, w] at 2, 4 and 8 px."""
    found = []
    for size in (2, 4, 8):
        kernel = torch.ones(size, size, dtype=luma.dtype, device=luma.device) / size
        kernel[size // 2 :] *= -1
        bank = torch.stack([kernel, kernel.T])[:, None]
        before, after = size // 2 - 1, size // 2
        found.append(F.conv2d(F.pad(luma, (before, after, before, after)), bank).abs())
    return torch.stack(found, dim=1)


def _box(x: Tensor) -> Tensor:
    return F.avg_pool2d(F.pad(x, (0, 1, 0, 1)), 2, stride=1).abs()


def _alike(a: Tensor, b: Tensor) -> Tensor:
    return (2 * a * b + 30) / (a * a + b * b + 30)
