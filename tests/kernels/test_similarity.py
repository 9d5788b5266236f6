"""Regional PSNR, SSIM and HaarPSI against a library and by their axioms."""

import piq
import pytest
import torch

from egomill.kernels.similarity import CAP, haarpsi, psnr, ssim

torch.manual_seed(0)
X = torch.nn.functional.avg_pool2d(torch.rand(3, 3, 66, 70), 3, 1)
Y = (X + 0.2 * torch.randn_like(X)).clamp(0, 1)


def test_agree_with_piq_on_whole_pictures():
    assert haarpsi(X, Y) == pytest.approx(float(piq.haarpsi(X, Y)), abs=2e-4)
    assert psnr(X, Y) == pytest.approx(-10 * torch.log10((X - Y).square().mean()).item(), abs=1e-4)
    inner = torch.zeros(3, 64, 68, dtype=torch.bool)
    inner[:, 5:-5, 5:-5] = True  # piq crops the rim instead of reflecting
    library = piq.ssim(X, Y, data_range=1.0, downsample=False)
    assert isinstance(library, torch.Tensor)
    assert ssim(X, Y, inner) == pytest.approx(library.item(), abs=1e-4)


@pytest.mark.parametrize("metric", [psnr, ssim, haarpsi])
def test_only_the_region_counts(metric):
    region = torch.zeros(3, 64, 68, dtype=torch.bool)
    region[:, 24:40, 24:44] = True
    far = torch.ones_like(region)
    far[:, 8:56, 8:60] = False
    changed = torch.where(far[:, None], torch.rand_like(X), Y)
    assert metric(X, changed, region) == pytest.approx(metric(X, Y, region), abs=1e-6)
    assert metric(X, changed) < metric(X, Y)
    assert metric(X, Y, torch.zeros_like(region)) is None


def test_equal_pictures_score_best():
    assert psnr(X, X) == CAP
    assert ssim(X, X) == pytest.approx(1)
    assert haarpsi(X, X) == pytest.approx(1, abs=1e-3)
