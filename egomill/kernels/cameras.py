"""The one camera truth: every view of Egomill is a `Camera`, and nobody else projects or unprojects.

A camera is a value: a lens name, its parameters and the size of the stored picture. Three lenses are known:

    pinhole         fx, fy, cx, cy
    kannala_brandt  fx, fy, cx, cy, k0..k3                    exo (GoPro): r = θ(1 + k0θ² + k1θ⁴ + k2θ⁶ + k3θ⁸)
    fisheye624      fx, fy, cx, cy, k0..k5, p0, p1, s0..s3    Aria RGB: FisheyeRadTanThinPrism

Conventions, everywhere: OpenCV axes (x right, y down, z forward), metres, pixel centres at integers. Parameters describe the
*sensor* picture; `turns` counts the clockwise quarter turns from there to the stored one (Ego-Exo4D stores Aria RGB with one:
`ARIA_TURNS`). Points and rays are always in the sensor's camera frame, which is the frame that the data set's poses refer to; so what a
turn does to pixels stands in `_to_stored` and `_to_sensor`, what it does to axes in `T_shown_sensor`, and nowhere else.

`max_theta` (radians from the optical axis) bounds where a lens is trusted. A lens polynomial may turn back on itself inside that bound;
`field_of_view` is the smaller of the two.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

PARAMS = {"pinhole": 4, "kannala_brandt": 8, "fisheye624": 16}
ARIA_TURNS = 1  # Aria's RGB sensor lies on its side; Ego-Exo4D stores its pictures turned upright
_RADIAL = {"kannala_brandt": slice(4, 8), "fisheye624": slice(4, 10)}  # of the parameters: the polynomial in θ²
_NEWTON_STEPS = 12


@dataclass(frozen=True)
class Camera:
    """A calibrated view. `width`, `height` are those of the stored (turned) picture, in pixels.

    Errors: ValueError on an unknown lens, a wrong number of parameters, non-finite numbers or an empty picture.
    """

    model: str
    params: tuple[float, ...]
    width: int
    height: int
    turns: int = 0
    max_theta: float = math.radians(85.0)

    def __post_init__(self) -> None:
        if self.model not in PARAMS:
            raise ValueError(f"unknown lens {self.model!r}; known: {', '.join(PARAMS)}")
        object.__setattr__(self, "params", tuple(float(p) for p in self.params))
        object.__setattr__(self, "turns", int(self.turns) % 4)
        if len(self.params) != PARAMS[self.model]:
            raise ValueError(f"lens {self.model} takes {PARAMS[self.model]} parameters, not {len(self.params)}")
        if not all(math.isfinite(p) for p in self.params) or self.params[0] <= 0 or self.params[1] <= 0:
            raise ValueError(f"lens {self.model}: parameters must be finite and focal lengths positive: {self.params}")
        if self.width < 1 or self.height < 1:
            raise ValueError(f"empty picture {self.width}x{self.height}")

    # -- geometry ------------------------------------------------------------------------------------------------

    def project(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Points [..., 3] (camera frame, metres) -> stored pixels [..., 2] (x, y) and validity [...].

        Valid: in front of the lens' field of view and inside the stored picture (its outermost pixels' areas included).
        """
        x, y, z = points.unbind(-1)
        planar = torch.sqrt(x * x + y * y + torch.finfo(points.dtype).tiny)
        theta = torch.atan2(planar, z)
        inside = theta < self.field_of_view
        if self.model == "pinhole":
            safe = torch.where(z > 0, z, torch.ones_like(z))
            u, v = x / safe, y / safe
        else:
            theta_in = theta.clamp(max=self.field_of_view)  # keeps polynomials (and gradients) finite outside the field of view
            radius = _radial(theta_in, self._radial_coefficients)
            u, v = radius * x / planar, radius * y / planar
            if self.model == "fisheye624":
                u, v = _tangential_thin_prism(u, v, self.params[10:])
        fx, fy, cx, cy = self.params[:4]
        pixels = self._to_stored(torch.stack((fx * u + cx, fy * v + cy), dim=-1))
        px, py = pixels.unbind(-1)
        on_picture = (px >= -0.5) & (px < self.width - 0.5) & (py >= -0.5) & (py < self.height - 0.5)
        return pixels, inside & on_picture

    def unproject(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Stored pixels [..., 2] -> unit rays [..., 3] in the sensor's camera frame, and validity [...].

        The lens is inverted by Newton's method (first the tangential and thin-prism terms, then the radial polynomial); both
        converge to rounding within `_NEWTON_STEPS` over the field of view.
        """
        fx, fy, cx, cy = self.params[:4]
        u, v = self._to_sensor(pixels).unbind(-1)
        u, v = (u - cx) / fx, (v - cy) / fy
        if self.model == "pinhole":
            ray = torch.stack((u, v, torch.ones_like(u)), dim=-1)
            ray = ray / ray.norm(dim=-1, keepdim=True)
            return ray, torch.atan2(torch.hypot(u, v), torch.ones_like(u)) < self.field_of_view
        if self.model == "fisheye624":
            u, v = _invert_tangential_thin_prism(u, v, self.params[10:])
        radius = torch.sqrt(u * u + v * v + torch.finfo(u.dtype).tiny)
        limit = self._radius_at_limit
        theta = _invert_radial(radius.clamp(max=limit), self._radial_coefficients, self.field_of_view)
        sine = torch.sin(theta)
        ray = torch.stack((sine * u / radius, sine * v / radius, torch.cos(theta)), dim=-1)
        return ray, radius < limit

    def rays(self, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
        """Unit rays [H, W, 3] through every stored pixel's centre, and validity [H, W]. Computed in float64, then cast."""
        y, x = torch.meshgrid(torch.arange(self.height, dtype=torch.float64), torch.arange(self.width, dtype=torch.float64), indexing="ij")
        ray, valid = self.unproject(torch.stack((x, y), dim=-1))
        return ray.to(device=device, dtype=dtype), valid.to(device)

    @cached_property
    def field_of_view(self) -> float:
        """Half angle (radians) up to which the lens is one-to-one: `max_theta`, or where its polynomial turns back, if that is less."""
        if self.model == "pinhole":
            return min(self.max_theta, math.pi / 2 - 1e-6)
        theta = torch.linspace(0.0, self.max_theta, 4096, dtype=torch.float64)
        falling = torch.nonzero(_radial_slope(theta, self._radial_coefficients) <= 1e-3)
        return self.max_theta if len(falling) == 0 else float(theta[max(int(falling[0]) - 1, 0)])

    # -- the same lens behind another picture ------------------------------------------------------------------------

    def crop(self, left: int, top: int, width: int, height: int) -> Camera:
        """The camera of the stored picture's rectangle that starts at pixel (left, top)."""
        return self._remap(lambda x, y: (x - left, y - top), 1.0, 1.0, width, height)

    def rescale(self, width: int, height: int) -> Camera:
        """The camera of the stored picture resized to width×height: c' = s(c + ½) − ½ on each axis (pixel centres at integers)."""
        sx, sy = width / self.width, height / self.height
        return self._remap(lambda x, y: (sx * (x + 0.5) - 0.5, sy * (y + 0.5) - 0.5), sx, sy, width, height)

    def turn_cw(self) -> Camera:
        """The camera of the stored picture turned 90° clockwise."""
        return replace(self, width=self.height, height=self.width, turns=self.turns + 1)

    def to_dict(self) -> dict:
        """A plain dictionary (JSON-ready) from which `from_dict` makes the same camera."""
        return {**asdict(self), "params": list(self.params)}

    @staticmethod
    def from_dict(d: dict) -> Camera:
        return Camera(**{**d, "params": tuple(d["params"])})

    # -- inside ------------------------------------------------------------------------------------------------------

    @property
    def _sensor_size(self) -> tuple[int, int]:
        return (self.height, self.width) if self.turns % 2 else (self.width, self.height)

    def _to_stored(self, pixels: Tensor) -> Tensor:
        """Sensor pixel -> stored pixel: one clockwise turn takes (x, y) of a w×h picture to (h − 1 − y, x)."""
        width, height = self._sensor_size
        x, y = pixels.unbind(-1)
        for _ in range(self.turns):
            x, y, width, height = height - 1 - y, x, height, width
        return torch.stack((x, y), dim=-1)

    def _to_sensor(self, pixels: Tensor) -> Tensor:
        width, height = self.width, self.height
        x, y = pixels.unbind(-1)
        for _ in range(self.turns):
            x, y, width, height = y, width - 1 - x, height, width
        return torch.stack((x, y), dim=-1)

    def _remap(self, move: Callable, sx: float, sy: float, width: int, height: int) -> Camera:
        """Carry focal lengths and principal point through an axis-aligned map of the stored picture, whatever its turn."""
        fx, fy, cx, cy = self.params[:4]
        centre = self._to_stored(torch.tensor([cx, cy], dtype=torch.float64))
        moved = move(float(centre[0]), float(centre[1]))
        if self.turns % 2:
            sx, sy = sy, sx
        out = replace(self, width=width, height=height)
        cx, cy = out._to_sensor(torch.tensor(moved, dtype=torch.float64)).tolist()
        return replace(out, params=(fx * sx, fy * sy, cx, cy, *self.params[4:]))

    @property
    def _radial_coefficients(self) -> tuple[float, ...]:
        return self.params[_RADIAL[self.model]]

    @cached_property
    def _radius_at_limit(self) -> float:
        return float(_radial(torch.tensor(self.field_of_view, dtype=torch.float64), self._radial_coefficients))


def _radial(theta: Tensor, k: tuple[float, ...]) -> Tensor:
    """r(θ) = θ (1 + k0 θ² + k1 θ⁴ + ...), by Horner."""
    t2 = theta * theta
    poly = torch.zeros_like(theta)
    for c in reversed(k):
        poly = (poly + c) * t2
    return theta * (1 + poly)


def _radial_slope(theta: Tensor, k: tuple[float, ...]) -> Tensor:
    t2 = theta * theta
    slope = torch.zeros_like(theta)
    for i in reversed(range(len(k))):
        slope = (slope + (2 * i + 3) * k[i]) * t2
    return 1 + slope


def _invert_radial(radius: Tensor, k: tuple[float, ...], limit: float) -> Tensor:
    theta = radius.clamp(max=limit)
    for _ in range(_NEWTON_STEPS):
        theta = (theta - (_radial(theta, k) - radius) / _radial_slope(theta, k).clamp(min=1e-3)).clamp(0.0, limit)
    return theta


def _tangential_thin_prism(x: Tensor, y: Tensor, c: tuple[float, ...]) -> tuple[Tensor, Tensor]:
    """The last six terms of FisheyeRadTanThinPrism, on the radially distorted (x, y): p0, p1 tangential, s0..s3 thin prism."""
    p0, p1, s0, s1, s2, s3 = c
    r2 = x * x + y * y
    dot = 2 * (x * p0 + y * p1)
    return x + x * dot + r2 * p0 + s0 * r2 + s1 * r2 * r2, y + y * dot + r2 * p1 + s2 * r2 + s3 * r2 * r2


def _invert_tangential_thin_prism(u: Tensor, v: Tensor, c: tuple[float, ...]) -> tuple[Tensor, Tensor]:
    p0, p1, s0, s1, s2, s3 = c
    x, y = u, v
    for _ in range(_NEWTON_STEPS):
        fu, fv = _tangential_thin_prism(x, y, c)
        r2 = x * x + y * y
        dot = 2 * (x * p0 + y * p1)
        du, dv = p0 + s0 + 2 * s1 * r2, p1 + s2 + 2 * s3 * r2  # d/d(r²) of the radial-only terms
        a, b = 1 + dot + 2 * x * p0 + 2 * x * du, 2 * x * p1 + 2 * y * du
        d, e = 2 * y * p0 + 2 * x * dv, 1 + dot + 2 * y * p1 + 2 * y * dv
        det = a * e - b * d
        eu, ev = fu - u, fv - v
        x, y = x - (e * eu - b * ev) / det, y - (a * ev - d * eu) / det
    return x, y


def aria_sensor_to_stored(camera_2880: Camera, size: int = 448) -> Camera:
    """The Aria RGB camera of Ego-Exo4D's frame-aligned videos from its factory calibration at 2880×2880.

    The recording crops 32 px a side and halves (2880 → 2816 → 1408), the release resizes to `size` and turns it upright.
    """
    if (camera_2880.width, camera_2880.height) != (2880, 2880):
        raise ValueError(f"Aria RGB calibrations are for 2880x2880, not {camera_2880.width}x{camera_2880.height}")
    return replace(camera_2880.crop(32, 32, 2816, 2816).rescale(1408, 1408).rescale(size, size), turns=ARIA_TURNS)


def T_shown_sensor(turns: int) -> Tensor:
    """From the sensor's camera frame to that of the picture as it is stored and shown (both x right, y down, z forward), [4, 4] float64.

    `turns` are a `Camera`'s: a clockwise quarter turn takes what is right on the sensor (x) to what is down in the picture (y).
    """
    once = torch.tensor([[0, -1, 0, 0], [1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]], dtype=torch.float64)
    return torch.linalg.matrix_power(once, turns % 4)


# Where Aria RGB's picture ends: its vignette falls to 70 % at 61.5 degrees and to 10 % at 74, and what lies outside shows next to nothing.
ARIA_VISIBLE = math.radians(61.5)
ARIA_RGB_TYPICAL = Camera(
    "fisheye624",
    (1220.6, 1220.6, 1464.6, 1442.4, 0.4144, -0.4860, 0.1385, 1.1460, -1.6676, 0.6301, 7.9e-4, -3.5e-4, -1.08e-3, 7.7e-5, 5.2e-4, -1.1e-4),
    2880,
    2880,
    max_theta=ARIA_VISIBLE,
)
# An exo lens behind the raw 3840x2160 pictures. The annotations list 1248 px for it: exo_lens.py says why.
GOPRO_TYPICAL = Camera("kannala_brandt", (1769.5, 1769.5, 1920.0, 1080.0, 0.036902, 0.057131, -0.057154, 0.018458), 3840, 2160)


def aria_rgb(size: int = 448) -> Camera:
    """A typical Aria RGB lens behind the portrait picture of `size` px: the stand-in where a clip brings no calibration."""
    return aria_sensor_to_stored(ARIA_RGB_TYPICAL, size)


def gopro(width: int = 796, height: int = 448) -> Camera:
    """A typical Ego-Exo4D exo lens at the given picture size."""
    return GOPRO_TYPICAL.rescale(width, height)
