"""Draw the sample photographs of examples/photos: products of our own, by ray marching.

A shape is a signed distance function; light comes from two soft boxes and a dim room, and bounces
once off what is glossy. `./packshot python training/photos.py [FOLDER]` takes some minutes.
Distance functions and smooth unions as in Inigo Quilez's collection (iquilezles.org/articles).
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

Array = np.ndarray
Shape = Callable[[Array], Array]
Paint = Callable[[Array, Array], tuple[Array, Array]]

SIDE, SAMPLES, STEPS, FAR = 900, 3, 110, 9.0


def vec(*parts: float) -> Array:
    return np.array(parts, np.float32)


def unit(v: Array) -> Array:
    return v / np.maximum(np.linalg.norm(v, axis=-1, keepdims=True), 1e-9)


def smooth(a: Array, b: Array, k: float) -> Array:
    """The union of two shapes, with a fillet of about ``k``."""
    h = np.clip(0.5 + 0.5 * (b - a) / k, 0, 1)
    return b + (a - b) * h - k * h * (1 - h)


def cut(a: Array, b: Array, k: float) -> Array:
    """Shape ``a`` without shape ``b``."""
    return -smooth(-a, b, k)


def ring2(p: Array) -> Array:
    """Distance from the vertical axis."""
    return np.hypot(p[:, 0], p[:, 2])


def slab(q: Array, y: Array, r: float, low: float, high: float, bevel: float) -> Array:
    """A round rod of radius ``r`` from ``low`` to ``high``, edges rounded; ``q`` from its axis."""
    a, b = q - (r - bevel), np.abs(y - (low + high) / 2) - ((high - low) / 2 - bevel)
    inside = np.minimum(np.maximum(a, b), 0)
    return inside + np.hypot(np.maximum(a, 0), np.maximum(b, 0)) - bevel


def egg(p: Array, centre: Array, radii: Array) -> Array:
    """An ellipsoid; its distance is a good guess near the surface."""
    d = (p - centre) / radii
    k0, k1 = np.linalg.norm(d, axis=-1), np.linalg.norm(d / radii, axis=-1)
    return k0 * (k0 - 1) / np.maximum(k1, 1e-6)


def taper(p: Array, r1: float, r2: float, h: float) -> Array:
    """In the plane, the hull of a circle at 0 and one at (0, ``h``); the first axis is positive."""
    b = (r1 - r2) / h
    a = np.sqrt(1 - b * b)
    k = p @ vec(-b, a)
    low, high = np.hypot(p[:, 0], p[:, 1]) - r1, np.hypot(p[:, 0], p[:, 1] - h) - r2
    return np.where(k < 0, low, np.where(k > a * h, high, p @ vec(a, b) - r1))


def rod(p: Array, a: Array, b: Array, r: float) -> Array:
    """A rod with round ends."""
    along = np.clip((p - a) @ (b - a) / float((b - a) @ (b - a)), 0, 1)
    return np.linalg.norm(p - a - along[:, None] * (b - a), axis=-1) - r


# ------------------------------------------------------------------------------------ the products


def mug(p: Array) -> Array:
    q, y = ring2(p), p[:, 1]
    body = cut(slab(q, y, 0.46, 0.0, 1.0, 0.07), slab(q, y, 0.41, 0.07, 1.4, 0.05), 0.02)
    x, h = (p[:, 0] - 0.47) * 0.85, p[:, 1] - 0.53
    handle = np.hypot(np.hypot(x, h * 0.88) - 0.255, p[:, 2] * 0.72) - 0.05
    handle = np.maximum(handle, 0.43 - q)
    return smooth(body, handle, 0.06)


def mug_paint(p: Array, _normal: Array) -> tuple[Array, Array]:
    """A cream glaze over a teal one, with a soft wavy edge; the inside is cream."""
    turn = np.arctan2(p[:, 2], p[:, 0])
    edge = 0.47 + 0.03 * np.sin(turn * 5 + 1) + 0.015 * np.sin(turn * 13)
    teal = 1 / (1 + np.exp((p[:, 1] - edge) / 0.012))
    outer = (ring2(p) > 0.43) | (p[:, 1] < 0.03)
    mix = (teal * outer)[:, None]
    colour = vec(0.80, 0.74, 0.62) * (1 - mix) + vec(0.03, 0.21, 0.24) * mix
    flat = np.stack((turn * 0.46, p[:, 1]), -1)
    speckled = np.zeros(len(p), bool)
    for x, h, r in SPECKLES:
        speckled |= np.hypot(flat[:, 0] - x, flat[:, 1] - h) < r
    colour = colour * np.where(speckled, 0.62, 1.0)[:, None]
    return colour, np.full(len(p), 0.9, np.float32)


SPECKLES = np.random.default_rng(5).uniform((-1.45, 0.0, 0.002), (1.45, 1.0, 0.0055), (420, 3))


def sneaker(p: Array) -> Array:
    x, y, z = p[:, 0], p[:, 1], p[:, 2]
    centre = 0.05 * np.sin((x + 0.2) * 2.0)
    toe = np.clip(x - 0.45, 0, 1) ** 2
    flat = taper(np.stack((np.abs(z - centre), x + 0.55), -1), 0.205, 0.27, 1.06)
    height = np.abs(y - 0.085 - toe * 0.5) - 0.085
    sole = np.hypot(np.maximum(flat + 0.03, 0), np.maximum(height + 0.03, 0)) - 0.03
    q = p - np.stack((x * 0, x * 0, centre), -1)
    front = egg(q, vec(0.36, 0.20, 0.0), vec(0.46, 0.20, 0.245))
    mid = egg(q, vec(-0.05, 0.26, 0.0), vec(0.50, 0.30, 0.225))
    heel = egg(q, vec(-0.47, 0.34, 0.0), vec(0.27, 0.36, 0.205))
    upper = smooth(smooth(front, mid, 0.14), heel, 0.12)
    collar = egg(q, vec(-0.40, 0.72, 0.0), vec(0.26, 0.22, 0.135))
    upper = cut(upper, collar, 0.05)
    wide = q * vec(1, 1, 0.42)
    tongue = rod(wide, vec(-0.02, 0.44, 0.0), vec(-0.20, 0.70, 0.0), 0.042)
    laces = np.full(len(p), 9.0, np.float32)
    for k in range(5):
        at, up = 0.27 - 0.095 * k, 0.405 + 0.042 * k
        laces = np.minimum(
            laces, rod(q, vec(at, up, -0.10), vec(at - 0.02, up + 0.025, 0.0), 0.019)
        )
        laces = np.minimum(laces, rod(q, vec(at - 0.02, up + 0.025, 0.0), vec(at, up, 0.10), 0.019))
    whole = smooth(sole, upper, 0.02)
    return np.minimum(np.minimum(whole, smooth(upper, tongue, 0.03)), laces) * 0.75


def sneaker_paint(p: Array, normal: Array) -> tuple[Array, Array]:
    """Brick-red cloth, a white sole with a groove, cream toe cap and laces, a navy heel."""
    x, y, z = p[:, 0], p[:, 1], p[:, 2]
    weave = 0.93 + 0.07 * np.sin(x * 190) * np.sin(y * 190 + z * 90)
    colour = vec(0.52, 0.055, 0.035) * weave[:, None]
    colour = np.where((x > 0.52)[:, None], vec(0.80, 0.76, 0.67), colour)
    colour = np.where((x < -0.56)[:, None], vec(0.02, 0.035, 0.11), colour)
    band = np.abs(y - 0.40 + 0.75 * (x + 0.16)) < 0.045
    colour = np.where((band & (x > -0.42) & (x < 0.06))[:, None], vec(0.80, 0.76, 0.67), colour)
    lace = (np.abs(z) < 0.13) & (x > -0.16) & (x < 0.31) & (normal[:, 1] > -0.2)
    ridge = np.abs(((0.27 - x) / 0.095 + 0.5) % 1 - 0.5) < 0.26
    colour = np.where((lace & ridge & (y > 0.37))[:, None], vec(0.85, 0.83, 0.78), colour)
    sole = y < 0.168 + 0.5 * np.clip(x - 0.45, 0, 1) ** 2
    white = np.where(np.abs(y - 0.10 - 0.5 * np.clip(x - 0.45, 0, 1) ** 2) < 0.010, 0.35, 0.86)[
        :, None
    ] * vec(1, 0.98, 0.94)
    colour = np.where(sole[:, None], white, colour)
    gloss = np.where(sole | (x > 0.52), 0.35, 0.06)
    return colour.astype(np.float32), gloss.astype(np.float32)


def bottle(p: Array) -> Array:
    q, y = ring2(p), p[:, 1]
    body = slab(q, y, 0.30, 0.0, 0.92, 0.05)
    neck = slab(q, y, 0.105, 0.8, 1.12, 0.02)
    cap = slab(q, y, 0.135, 1.10, 1.40, 0.025)
    cap = cap + 0.003 * np.cos(np.arctan2(p[:, 2], p[:, 0]) * 36) * ((y > 1.13) & (y < 1.36))
    return np.minimum(smooth(body, neck, 0.10), cap) * 0.9


def label() -> Array:
    """The label, drawn flat: [height, width, 4], linear light and cover."""
    image = Image.new("RGBA", (1200, 700), (244, 240, 228, 255))
    draw = ImageDraw.Draw(image)
    draw.rectangle((24, 24, 1175, 675), outline=(40, 52, 46, 255), width=6)
    draw.ellipse((530, 70, 670, 210), outline=(40, 52, 46, 255), width=8)
    draw.polygon([(600, 90), (560, 180), (640, 180)], fill=(40, 52, 46, 255))
    for text, y, size in (("NORTH & PINE", 240, 96), ("hand soap", 370, 72), ("250 ml", 560, 56)):
        font = ImageFont.load_default(size)
        draw.text((600 - draw.textlength(text, font=font) / 2, y), text, (40, 52, 46), font)
    draw.rectangle((420, 490, 780, 498), fill=(176, 92, 44, 255))
    pixels = np.asarray(image.filter(ImageFilter.GaussianBlur(1)), np.float32) / 255
    pixels[..., :3] = pixels[..., :3] ** 2.2
    return pixels


LABEL = label()


def bottle_paint(p: Array, _normal: Array) -> tuple[Array, Array]:
    """Amber glass that lets no light through, a paper label, a black cap."""
    q, y = ring2(p), p[:, 1]
    turn = np.arctan2(p[:, 0], -p[:, 2])  # 0 faces the camera
    colour = np.tile(vec(0.20, 0.066, 0.012), (len(p), 1))
    gloss = np.full(len(p), 1.0, np.float32)
    u, v = (turn / 2.5 + 0.5), (0.80 - y) / 0.60
    on = (u > 0) & (u < 1) & (v > 0) & (v < 1) & (q > 0.27) & (y < 0.9)
    column = np.clip((u * 1199).astype(int), 0, 1199)
    row = np.clip((v * 699).astype(int), 0, 699)
    colour[on] = LABEL[row[on], column[on], :3]
    gloss[on] = 0.08
    cap = y > 1.105
    colour[cap], gloss[cap] = vec(0.012, 0.012, 0.013), 0.5
    return colour, gloss


# --------------------------------------------------------------------------------------- the light


def room(d: Array) -> Array:
    """What is seen in a direction: a dim room, a soft box on the left, a strip on the right."""
    up = np.clip(d[:, 1] * 0.5 + 0.5, 0, 1)
    light = 0.10 + 0.34 * up
    for to, width, power in (
        (unit(vec(-0.75, 0.65, -0.6)), 0.42, 5.2),
        (unit(vec(0.95, 0.3, -0.25)), 0.22, 2.2),
    ):
        side = unit(np.cross(to, vec(0, 1, 0)))
        top = np.cross(side, to)
        front = d @ to
        a = np.abs(d @ side) / np.maximum(front, 1e-3) / width
        b = np.abs(d @ top) / np.maximum(front, 1e-3) / (width * 1.6)
        soft = 1 / (1 + np.exp(np.minimum((np.maximum(a, b) - 1) * 14, 50)))
        light = light + power * soft * (front > 0)
    return light


def normals(shape: Shape, p: Array) -> Array:
    e = 0.0012
    axes = np.eye(3, dtype=np.float32) * e
    return unit(np.stack([shape(p + a) - shape(p - a) for a in axes], -1))


def march(shape: Shape, origin: Array, d: Array, far: float = FAR, steps: int = STEPS) -> Array:
    """Return how far along each ray the shape is; ``far`` where it is not met."""
    t = np.full(len(d), 0.0, np.float32)
    live = np.arange(len(d))
    for _ in range(steps):
        near = shape(origin[live] + d[live] * t[live, None])
        t[live] += near
        live = live[(near > 4e-4) & (t[live] < far)]
        if not len(live):
            break
    t[live] = far
    return t


def sight(shape: Shape, p: Array, to: Array, hardness: float, reach: float = 2.2) -> Array:
    """Return the share of a soft light that reaches each point (Quilez's soft shadow)."""
    t, seen = np.full(len(p), 0.02, np.float32), np.ones(len(p), np.float32)
    for _ in range(26):
        near = shape(p + to * t[:, None])
        seen = np.minimum(seen, np.clip(0.5 + 0.5 * hardness * near / t, 0, 1))
        t += np.clip(near, 0.02, 0.16)
        if (t > reach).all():
            break
    return seen * seen * (3 - 2 * seen)


def shade(shape: Shape, paint: Paint, p: Array, d: Array) -> Array:
    """Return the light that comes back from each point towards the camera."""
    n = normals(shape, p)
    colour, gloss = paint(p, n)
    start = p + n * 0.004
    diffuse = 0.30 * (0.55 + 0.45 * n[:, 1])
    open_sky = np.ones(len(p), np.float32)
    for k in range(1, 5):
        open_sky -= np.maximum(0.05 * k - shape(p + n * 0.05 * k), 0) * (1.6 / k)
    floor = np.clip(p[:, 1] * 3.0, 0, 1) * 0.35 + 0.65  # the table that it stands on takes light
    diffuse = diffuse * np.clip(open_sky, 0.15, 1) * floor
    for to, power in ((unit(vec(-0.75, 0.75, -0.65)), 0.95), (unit(vec(0.95, 0.35, -0.4)), 0.26)):
        facing = np.clip(n @ to * 0.9 + 0.1, 0, 1)
        diffuse = diffuse + power * facing * sight(shape, start, to, 5.0)
    mirror = d - 2 * (d * n).sum(-1, keepdims=True) * n
    fresnel = 0.04 + 0.96 * np.clip(1 + (d * n).sum(-1), 0, 1) ** 5
    blocked = np.clip(0.25 + 5 * shape(start + mirror * 0.22), 0, 1)
    shine = room(mirror) * fresnel * gloss * blocked
    return colour * diffuse[:, None] + shine[:, None]


# ---------------------------------------------------------------------------------------- pictures


@dataclass(frozen=True)
class Product:
    """A product and how it is looked at: where from, at what, how much of the world is seen."""

    shape: Shape
    paint: Paint
    turn: float
    eye: tuple[float, float, float]
    at: tuple[float, float, float]
    wide: float
    side: tuple[int, int] = (SIDE, SIDE)


PRODUCTS = {
    "mug": Product(mug, mug_paint, -25.0, (0.0, 1.75, -5.2), (0.08, 0.50, 0.0), 1.75),
    "sneaker": Product(
        sneaker, sneaker_paint, 205.0, (0.0, 1.55, -5.2), (0.0, 0.36, 0.0), 1.95, (1000, 750)
    ),
    "bottle": Product(
        bottle, bottle_paint, 0.0, (0.0, 1.45, -6.2), (0.0, 0.68, 0.0), 2.0, (800, 1000)
    ),
}


def draw(product: Product, table: Shape | None = None) -> tuple[Array, Array]:
    """Return linear light [h, w, 3] and cover [h, w], averaged over the samples of a pixel."""
    a = np.deg2rad(product.turn)
    turn = np.array([[np.cos(a), 0, -np.sin(a)], [0, 1, 0], [np.sin(a), 0, np.cos(a)]], np.float32)

    def shape(p: Array) -> Array:
        return product.shape(p @ turn.T)

    def paint(p: Array, n: Array) -> tuple[Array, Array]:
        return product.paint(p @ turn.T, n @ turn.T)

    width, height = product.side
    light, cover = np.zeros((height, width, 3), np.float32), np.zeros((height, width), np.float32)
    for row in range(SAMPLES):
        for column in range(SAMPLES):
            colour, hit = _pass(product, shape, paint, (column, row), studio=table is not None)
            light += np.clip(colour, 0, 1.2) * hit[..., None]
            cover += hit
    return light / np.maximum(cover, 1)[..., None], cover / SAMPLES**2


def _pass(
    product: Product, shape: Shape, paint: Paint, at: tuple[int, int], *, studio: bool
) -> tuple[Array, Array]:
    width, height = product.side
    eye, target = vec(*product.eye), vec(*product.at)
    forward = unit(target - eye)
    right = unit(np.cross(vec(0, 1, 0), forward))
    up = np.cross(forward, right)
    scale = product.wide / np.linalg.norm(target - eye) / max(width, height)
    x = (np.arange(width) + (at[0] + 0.5) / SAMPLES - width / 2) * scale
    y = -(np.arange(height) + (at[1] + 0.5) / SAMPLES - height / 2) * scale
    grid = np.stack(np.meshgrid(x, y), -1).reshape(-1, 2).astype(np.float32)
    d = unit(forward + grid[:, :1] * right + grid[:, 1:] * up).astype(np.float32)
    origin = np.broadcast_to(eye, d.shape)
    t = march(shape, origin, d)
    hit = t < FAR
    colour = np.zeros_like(d)
    colour[hit] = shade(shape, paint, origin[hit] + d[hit] * t[hit, None], d[hit])
    if studio:
        colour[~hit] = sweep(shape, origin[~hit], d[~hit])
        hit = np.ones_like(hit)
    return colour.reshape(height, width, 3), hit.reshape(height, width).astype(np.float32)


def sweep(shape: Shape, origin: Array, d: Array) -> Array:
    """A grey paper sweep: the floor takes the product's shadow, far away it turns to wall."""
    t = np.where(d[:, 1] < -1e-3, -origin[:, 1] / np.minimum(d[:, 1], -1e-3), 1e3)
    wall = np.clip((t - 6.5) / 6.0, 0, 1)
    p = origin + d * np.minimum(t, 14)[:, None]
    near = (np.abs(p[:, 0]) < 2.5) & (np.abs(p[:, 2]) < 2.5)
    seen = np.ones(len(d), np.float32)
    seen[near] = 0.35 + 0.65 * sight(shape, p[near], unit(vec(-0.75, 0.75, -0.65)), 4.0, 3.0)
    ambient = np.ones(len(d), np.float32)
    for k in range(1, 5):
        reach = 0.06 * k
        ambient[near] -= np.clip(reach - shape(p[near] + vec(0, reach, 0)), 0, None) * (1.5 / k)
    tone = (0.40 - 0.10 * wall) * (1 - wall + wall * 1.0)
    shadow = seen * np.clip(ambient, 0.2, 1) * (1 - wall) + wall
    return (tone * shadow)[:, None] * vec(0.98, 1.0, 1.03)


def encode(light: Array) -> Array:
    x = np.clip(light, 0, None)
    x = np.clip(x * (1 + x / 1.6) / (1 + x), 0, 1)  # Reinhard's curve with a white point
    x = np.where(x <= 0.0031308, 12.92 * x, 1.055 * x ** (1 / 2.4) - 0.055)
    return (x * 255 + 0.5).astype(np.uint8)


def main(folder: str = "examples/photos") -> None:
    out = Path(folder)
    out.mkdir(parents=True, exist_ok=True)
    for name in ("mug", "sneaker"):
        light, cover = draw(PRODUCTS[name])
        alpha = (cover * 255 + 0.5).astype(np.uint8)
        pixels = encode(light) * (alpha > 0)[..., None].astype(np.uint8)
        Image.fromarray(np.dstack((pixels, alpha))).save(out / f"{name}.png", optimize=True)
        print(out / f"{name}.png", (out / f"{name}.png").stat().st_size)
    light, _ = draw(PRODUCTS["bottle"], table=bottle)
    grain = np.random.default_rng(1).normal(0, 1.2, light.shape[:2])[..., None]
    pixels = np.clip(encode(light) + grain, 0, 255).astype(np.uint8)
    Image.fromarray(pixels).save(out / "bottle.jpg", quality=93, subsampling=0)
    print(out / "bottle.jpg", (out / "bottle.jpg").stat().st_size)


if __name__ == "__main__":
    main(*sys.argv[1:])
