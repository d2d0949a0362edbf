"""Path-trace product cut-outs: every product from many sides under many lights, on a grey ground.

Each cut-out is rendered twice, its re-tintable surfaces once light and once dark. A surface lights
its picture in proportion to its reflectance, so any colour in between is a blend of the two:
``picture(c) = dark + (light - dark) * (c - DARK) / (LIGHT - DARK)`` per channel. One
pair of renders therefore serves every colour of the lexicon.

    python training/data/render_cutouts.py --assets .work/assets --out .work/cutouts --worker 0/2

Restartable: a cut-out whose files exist is skipped; rounds visit all products, so that whatever is
there when the run is stopped is balanced. Per cut-out: ``NNNNNN.a.webp`` (light tint, RGBA),
``.b.webp`` (dark tint), ``.s.webp`` (how much of its light the ground keeps, grey) and ``.json``.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import cv2
import numpy as np
import yaml
from camera import FOV_DEGREES, place

LIGHT, DARK = 0.80, 0.03
"""Reflectances of the two tints."""
SIZE = 256
GROUND = 0.5
"""Reflectance of the ground that catches shadows."""
ENCODE_RANGE = 4.0
"""Linear light is stored as sqrt(light / ENCODE_RANGE): highlights to 4x white survive 8 bits."""
ENVIRONMENTS = (
    "apartment bridge city dawn esplanade forest hall lab lobby park sky studio sunrise sunset "
    "venice warehouse workshop"
).split()


@dataclass(frozen=True)
class Shot:
    """Camera and lamp of one cut-out; angles in degrees, lamp side relative to the camera."""

    product: str
    model: int
    azimuth: float
    elevation: float
    zoom: float
    height: float
    environment: str
    environment_turn: float
    lamp: str  # soft | normal | hard
    side: str  # left | right | behind | front
    lamp_azimuth: float
    lamp_elevation: float
    lamp_power: float
    lamp_size: float


def draw_shot(product: str, models: int, rng: np.random.Generator) -> Shot:
    """Draw the parameters of one cut-out."""
    lamp = str(rng.choice(["soft", "normal", "hard"], p=[0.3, 0.4, 0.3]))
    side = str(rng.choice(["left", "right", "behind", "front"], p=[0.35, 0.35, 0.15, 0.15]))
    azimuth = {"left": -60.0, "right": 60.0, "behind": 180.0, "front": 0.0}[side]
    size = {"soft": 1.7, "normal": 0.75, "hard": 0.3}[lamp] * rng.uniform(0.85, 1.15)
    power = {"soft": 11.0, "normal": 60.0, "hard": 360.0}[lamp] * rng.uniform(0.8, 1.25)
    return Shot(
        product=product,
        model=int(rng.integers(models)),
        azimuth=float(rng.uniform(-75, 75)),
        elevation=float(rng.uniform(7, 27)),
        zoom=float(rng.uniform(0.95, 1.2)),
        height=float(rng.uniform(0.48, 0.62)),
        environment=str(rng.choice(ENVIRONMENTS)),
        environment_turn=float(rng.uniform(0, 360)),
        lamp=lamp,
        side=side,
        lamp_azimuth=azimuth + float(rng.uniform(-18, 18)),
        lamp_elevation=float(rng.uniform(48, 65) if side == "front" else rng.uniform(26, 44)),
        lamp_power=float(power),
        lamp_size=float(size),
    )


class Tracer:
    """Mitsuba scenes of one product model in its two tints."""

    def __init__(self, parts, tint: list[str], environments: Path) -> None:
        import mitsuba as mi

        self.mi = mi
        self.environments = environments
        self.light = [self._mesh(i, part, tint, LIGHT) for i, part in enumerate(parts)]
        self.dark = (
            [self._mesh(i, part, tint, DARK) for i, part in enumerate(parts)] if tint else []
        )

    def _mesh(self, index: int, part, tint: list[str], reflectance: float):
        mi, count = self.mi, len(part.position)
        properties = mi.Properties()
        properties["bsdf"] = mi.load_dict(self._bsdf(part, tint, reflectance))
        mesh = mi.Mesh(
            f"m{index}",
            count,
            count // 3,
            has_vertex_normals=True,
            has_vertex_texcoords=True,
            props=properties,
        )
        values = mi.traverse(mesh)
        values["vertex_positions"] = part.position.ravel()
        values["vertex_normals"] = part.normal.ravel()
        values["vertex_texcoords"] = part.uv.ravel()
        values["faces"] = np.arange(count, dtype=np.uint32)
        values.update()
        return mesh

    def _bsdf(self, part, tint: list[str], reflectance: float) -> dict:
        mi, material = self.mi, part.material
        whole = part.name in tint or "*" in tint
        saturated = f"{part.name}~" in tint or "*~" in tint
        shine = material.specular > 0.02
        surface = {
            "type": "principled",
            "roughness": float(np.clip((2 / (material.exponent + 2)) ** 0.5, 0.16, 0.75))
            if shine
            else 0.6,
            "specular": float(np.clip(0.35 + material.specular * 0.5, 0.2, 0.75)),
        }
        texture = material.texture
        if texture is not None:
            rgb = _to_linear(texture[..., :3])
            if whole or saturated:
                rgb = _tint_texture(texture[..., :3], rgb, reflectance, saturated=saturated)
            bitmap = mi.Bitmap(np.ascontiguousarray(np.clip(rgb, 0.01, 0.88), dtype=np.float32))
            surface["base_color"] = {"type": "bitmap", "bitmap": bitmap, "raw": True}
        else:
            tinted = whole or (saturated and np.ptp(material.diffuse) > 0.15)
            colour = [reflectance] * 3 if tinted else _to_linear(np.clip(material.diffuse, 0, 1))
            colour = [float(v) for v in np.clip(colour, 0.01, 0.88)]
            surface["base_color"] = {"type": "rgb", "value": colour}
        bsdf = {"type": "twosided", "b": surface}
        if texture is not None and texture[..., 3].min() < 0.5:
            alpha = mi.Bitmap(np.ascontiguousarray(texture[..., 3:], dtype=np.float32))
            return {
                "type": "mask",
                "opacity": {"type": "bitmap", "bitmap": alpha, "raw": True},
                "b": bsdf,
            }
        if material.opacity < 0.95:
            return {"type": "mask", "opacity": max(material.opacity, 0.25), "b": bsdf}
        return bsdf

    def render(self, shot: Shot, model_height: float, samples: int) -> dict[str, np.ndarray]:
        """Return light, dark, ground (float RGB [S, S, 3], linear) and alpha [S, S]."""
        origin, target = place(shot.azimuth, shot.elevation, shot.zoom, shot.height, model_height)
        lamps = self._lamps(shot, target)
        lit = {**lamps, "ground": self._ground(), "integrator": {"type": "path", "max_depth": 4}}
        frame = self._frame(origin, target, SIZE)
        light = {f"o{i}": mesh for i, mesh in enumerate(self.light)}
        dark = {f"o{i}": mesh for i, mesh in enumerate(self.dark)}
        depth = {"integrator": {"type": "depth"}}
        bare = self._trace({**self._frame(origin, target, SIZE // 2), **lit}, samples)
        passes = {
            "light": self._denoised({**frame, **lit, **light}, samples),
            "ground": cv2.resize(self._clean(bare), (SIZE, SIZE), interpolation=cv2.INTER_CUBIC),
            "alpha": np.clip(self._trace({**frame, **depth, **light}, 16)[..., 3], 0, 1),
        }
        if dark:
            passes["dark"] = self._denoised({**frame, **lit, **dark}, max(8, samples * 2 // 3))
        return passes

    def _trace(self, scene: dict, samples: int) -> np.ndarray:
        return np.array(self.mi.render(self.mi.load_dict(scene), spp=samples))

    def _denoised(self, scene: dict, samples: int) -> np.ndarray:
        # Features come from a pass of their own: nesting the path tracer in the AOV integrator
        # traces every path twice (measured, Mitsuba 3.9).
        features = {"integrator": {"type": "aov", "aovs": "albedo:albedo,normal:sh_normal"}}
        aov = self._trace({**scene, **features}, 4)
        return self._clean(self._trace(scene, samples), aov[..., -6:-3], aov[..., -3:])

    def _clean(self, image: np.ndarray, albedo=None, normal=None) -> np.ndarray:
        import mitsuba_oidn

        tidy = np.ascontiguousarray
        guides = {}
        if albedo is not None and normal is not None:
            guides = {"albedo": tidy(np.clip(albedo, 0, 1)), "normal": tidy(normal)}
        return np.array(mitsuba_oidn.denoise(tidy(image[..., :3]), hdr=True, **guides))

    def _frame(self, origin, target, size: int) -> dict:
        place = self.mi.ScalarTransform4f().look_at(
            origin=[float(v) for v in origin], target=[float(v) for v in target], up=[0, 1, 0]
        )
        film = {"type": "hdrfilm", "width": size, "height": size, "pixel_format": "rgba"}
        return {
            "type": "scene",
            "sensor": {
                "type": "perspective",
                "fov": FOV_DEGREES,
                "to_world": place,
                "film": {**film, "rfilter": {"type": "box"}},
                "sampler": {"type": "independent", "sample_count": 16},
            },
        }

    def _lamps(self, shot: Shot, target) -> dict:
        transform = self.mi.ScalarTransform4f
        a = math.radians(shot.azimuth + shot.lamp_azimuth)
        e = math.radians(shot.lamp_elevation)
        ray = np.array([math.sin(a) * math.cos(e), math.sin(e), math.cos(a) * math.cos(e)])
        place = transform().look_at(
            origin=[float(v) for v in target + 4 * ray],
            target=[float(v) for v in target],
            up=[0, 1, 0],
        )
        emitter = {"type": "area", "radiance": {"type": "rgb", "value": [shot.lamp_power] * 3}}
        dim = {"soft": 0.85, "normal": 0.5, "hard": 0.3}[shot.lamp]
        panorama = np.load(self.environments / f"{shot.environment}.npy").astype(np.float32)
        panorama = np.minimum(panorama, np.percentile(panorama, 99.5))
        panorama = panorama / panorama.mean() * dim
        grey = panorama.mean((0, 1)) / panorama.mean()
        return {
            "env": {
                "type": "envmap",
                "bitmap": self.mi.Bitmap(np.ascontiguousarray(panorama / grey)),
                "to_world": transform().rotate([0, 1, 0], shot.environment_turn),
            },
            "key": {
                "type": "rectangle",
                "to_world": place @ transform().scale([shot.lamp_size, shot.lamp_size, 1]),
                "emitter": emitter,
            },
        }

    def _ground(self) -> dict:
        transform = self.mi.ScalarTransform4f
        return {
            "type": "rectangle",
            "to_world": transform().rotate([1, 0, 0], -90) @ transform().scale([60, 60, 1]),
            "b": {"type": "diffuse", "reflectance": {"type": "rgb", "value": [GROUND] * 3}},
        }


def _to_linear(srgb) -> np.ndarray:
    srgb = np.asarray(srgb, np.float32)
    return np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)


def _tint_texture(srgb: np.ndarray, linear: np.ndarray, reflectance: float, *, saturated: bool):
    """Keep a texture's shading detail, give it the tint's reflectance."""
    value = srgb.max(-1, keepdims=True)
    detail = np.clip(value / max(float(np.percentile(value, 85)), 0.15), 0, 1.15)
    tinted = _to_linear(np.clip(detail, 0, 1)) * reflectance * np.ones(3, np.float32)
    if not saturated:
        return tinted
    saturation = cv2.cvtColor(np.ascontiguousarray(srgb), cv2.COLOR_RGB2HSV)[..., 1:2]
    weight = np.clip((saturation - 0.25) * 4, 0, 1)
    return linear * (1 - weight) + tinted * weight


def develop(passes: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Turn passes into what is stored: exposed object colours, alpha, kept light of the ground."""
    alpha = passes["alpha"]
    weights = np.array([0.2126, 0.7152, 0.0722], np.float32)
    ground = cv2.GaussianBlur(passes["ground"], (0, 0), 2)
    lower = ground[SIZE // 2 :].reshape(-1, 3)
    exposure = 0.5 / max(float(np.median(lower @ weights)), 1e-4)
    ratio = (passes["light"] @ weights) / np.maximum(ground @ weights, 1e-4)
    free = (alpha < 0.02).astype(np.float32)
    spread = cv2.GaussianBlur(ratio * free, (0, 0), 1.5) / np.maximum(
        cv2.GaussianBlur(free, (0, 0), 1.5), 1e-3
    )
    ratio = np.clip(np.where(free > 0, ratio, spread), 0.0, 1.25) / 1.25
    out = {
        "alpha": alpha,
        "shadow": cv2.resize(ratio.astype(np.float32), (128, 128), interpolation=cv2.INTER_AREA),
    }
    for name in ("light", "dark"):
        if name in passes:
            out[name] = _bleed(passes[name] * exposure, alpha)
    return out


def _bleed(colour: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Carry object colour outwards over the rim, so that blending does not bring the old ground."""
    known = (alpha > 0.97).astype(np.float32)[..., None]
    value = colour * known
    for _ in range(6):
        near = cv2.GaussianBlur(known, (0, 0), 1.2)[..., None]
        fill = cv2.GaussianBlur(value, (0, 0), 1.2) / np.maximum(near, 1e-4)
        grown = (near > 0.02).astype(np.float32)
        value = value * known + fill * grown * (1 - known)
        known = np.maximum(known, grown)
    return value


def save(stem: Path, images: dict[str, np.ndarray], facts: dict) -> None:
    """Write one cut-out; the JSON last, as it marks the cut-out complete."""

    def encode(light: np.ndarray) -> np.ndarray:
        return (np.sqrt(np.clip(light / ENCODE_RANGE, 0, 1)) * 255 + 0.5).astype(np.uint8)[
            ..., ::-1
        ]

    alpha = (images["alpha"] * 255 + 0.5).astype(np.uint8)
    quality = [cv2.IMWRITE_WEBP_QUALITY, 94]
    cv2.imwrite(f"{stem}.a.webp", np.dstack([encode(images["light"]), alpha]), quality)
    if "dark" in images:
        cv2.imwrite(f"{stem}.b.webp", encode(images["dark"]), [cv2.IMWRITE_WEBP_QUALITY, 90])
    cv2.imwrite(
        f"{stem}.s.webp",
        (images["shadow"] * 255 + 0.5).astype(np.uint8),
        [cv2.IMWRITE_WEBP_QUALITY, 80],
    )
    Path(f"{stem}.json").write_text(json.dumps(facts))


def unpack_environments(assets: Path) -> Path:
    """Unpack the base64 EXR panoramas of the npm package once, as float16 arrays."""
    import base64
    import re

    import OpenEXR

    cache = assets / "panoramas"
    cache.mkdir(exist_ok=True)
    for name in ENVIRONMENTS:
        if (cache / f"{name}.npy").exists():
            continue
        text = (assets / "package" / "hdri" / f"{name}.exr.js").read_text()
        found = re.search(r"base64,([A-Za-z0-9+/=]+)", text)
        if found is None:
            raise SystemExit(f"{name}.exr.js holds no base64 picture")
        exr = cache / f"{name}.exr"
        exr.write_bytes(base64.b64decode(found.group(1)))
        channels = OpenEXR.File(str(exr)).channels()
        pixels = channels["RGB" if "RGB" in channels else "RGBA"].pixels[..., :3]
        temporary = cache / f"{name}.{os.getpid()}.npy"
        np.save(temporary, pixels.astype(np.float16))
        temporary.rename(cache / f"{name}.npy")
    return cache


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--assets", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--worker", default="0/1", help="this worker / number of workers")
    parser.add_argument("--per-product", type=int, default=48)
    parser.add_argument("--round", type=int, default=6, help="cut-outs of a product in one go")
    parser.add_argument("--samples", type=int, default=16, help="light paths a pixel")
    parser.add_argument("--only", default="", help="comma-separated product names")
    arguments = parser.parse_args()
    import drjit
    import mitsuba as mi
    from obj import catalog, extent, load_model, turn_about_y

    mi.set_variant("llvm_ad_rgb")
    drjit.set_thread_count(1)
    products = yaml.safe_load((Path(__file__).parent.parent / "products.yaml").read_text())
    if arguments.only:
        products = [p for p in products if p["name"] in arguments.only.split(",")]
    worker, workers = (int(v) for v in arguments.worker.split("/"))
    environments = unpack_environments(arguments.assets)
    libraries = arguments.assets / "shf/usr/share/sweethome3d/furniture"
    arguments.out.mkdir(parents=True, exist_ok=True)
    done, started = 0, time.time()
    for first in range(0, arguments.per_product, arguments.round):
        for number, product in enumerate(products):
            if (number + first // arguments.round) % workers != worker:
                continue
            tracers: dict[int, tuple[Tracer, float, str]] = {}
            for view in range(first, min(first + arguments.round, arguments.per_product)):
                stem = arguments.out / f"{number:03d}{view:03d}"
                if Path(f"{stem}.json").exists():
                    continue
                rng = np.random.default_rng([7, number, view])
                shot = draw_shot(product["name"], len(product["models"]), rng)
                if shot.model not in tracers:
                    row = product["models"][shot.model]
                    path = libraries / f"{row['lib']}.sh3f"
                    entry = next(e for e in catalog(path) if e["model"].endswith("/" + row["file"]))
                    parts = load_model(
                        path, entry["model"], row.get("rotation") or entry.get("modelRotation")
                    )
                    parts = [part for part in parts if part.name not in row.get("drop", [])]
                    turn_about_y(parts, row.get("turn", 0.0))
                    tracer = Tracer(parts, row.get("tint", []), environments)
                    tracers[shot.model] = (
                        tracer,
                        float(extent(parts)[1]),
                        entry.get("creator", ""),
                    )
                tracer, height, creator = tracers[shot.model]
                images = develop(tracer.render(shot, height, arguments.samples))
                save(stem, images, {**asdict(shot), "model_height": height, "creator": creator})
                done += 1
            print(
                f"{done} cut-outs, {(time.time() - started) / max(done, 1):.2f} s each, "
                f"{product['name']}",
                flush=True,
            )


if __name__ == "__main__":
    main()
