"""Read the OBJ + MTL models of Sweet Home 3D furniture libraries (``.sh3f``, zip files).

Format: Wavefront OBJ (vertices, texture coordinates, normals, polygons; ``usemtl`` groups) and MTL
(``Kd`` diffuse, ``Ks`` specular colour 0..1, ``Ns`` exponent, ``d`` opacity, ``map_Kd`` texture).
"""

from __future__ import annotations

import io
import posixpath
import re
import zipfile
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import mapbox_earcut
import numpy as np
from PIL import Image

CREASE_COS = np.cos(np.radians(40.0))
"""Faces that meet at less than 40 degrees are shaded smooth where the file has no normals."""


@dataclass
class Material:
    """One MTL entry; ``texture`` is an array [H, W, 4] in 0..1 (sRGB), or None."""

    diffuse: tuple[float, float, float] = (0.7, 0.7, 0.7)
    specular: float = 0.1
    exponent: float = 30.0
    opacity: float = 1.0
    texture_name: str = ""
    texture: np.ndarray | None = field(default=None, repr=False)


@dataclass
class Part:
    """The triangles of one material: unindexed, three rows a triangle."""

    name: str
    material: Material
    position: np.ndarray  # [3 * triangles, 3]
    normal: np.ndarray  # [3 * triangles, 3]
    uv: np.ndarray  # [3 * triangles, 2]

    @property
    def area(self) -> float:
        """Surface in the model's units squared."""
        a, b, c = self.position[0::3], self.position[1::3], self.position[2::3]
        return float(np.linalg.norm(np.cross(b - a, c - a), axis=1).sum() / 2)


@lru_cache(maxsize=8)
def library(path: Path) -> zipfile.ZipFile:
    """Open one ``.sh3f`` file."""
    return zipfile.ZipFile(path)


def catalog(path: Path) -> list[dict[str, str]]:
    """Return the library's entries: name, creator, category, model, modelRotation ..."""
    archive = library(path)
    name = next(n for n in archive.namelist() if re.search(r"Catalog\.properties$", n))
    text = archive.read(name).decode("latin1")
    entries: dict[str, dict[str, str]] = {}
    for key, number, value in re.findall(r"^(\w+)#(\d+)=(.*?)\r?$", text, re.MULTILINE):
        entries.setdefault(number, {})[key] = value.strip()
    return list(entries.values())


def load_model(path: Path, model: str, rotation: str | None) -> list[Part]:
    """Load one model, turned upright, standing on y = 0, its diagonal scaled to 2."""
    archive, model = library(path), model.lstrip("/")
    folder = posixpath.dirname(model)
    parts = _parse_obj(archive, archive.read(model).decode("latin1"), folder)
    if rotation:
        turn = np.array([float(v) for v in rotation.split()], np.float32).reshape(3, 3)
        for part in parts:
            part.position, part.normal = part.position @ turn.T, part.normal @ turn.T
    points = np.concatenate([part.position for part in parts])
    low, high = points.min(0), points.max(0)
    origin = np.array([(low[0] + high[0]) / 2, low[1], (low[2] + high[2]) / 2])
    scale = 2 / np.linalg.norm(high - low)
    for part in parts:
        part.position = ((part.position - origin) * scale).astype(np.float32)
        length = np.linalg.norm(part.normal, axis=1, keepdims=True)
        part.normal = (part.normal / np.maximum(length, 1e-9)).astype(np.float32)
    return parts


def extent(parts: list[Part]) -> np.ndarray:
    """Width, height, depth of the whole model."""
    points = np.concatenate([part.position for part in parts])
    return points.max(0) - points.min(0)


def turn_about_y(parts: list[Part], degrees: float) -> None:
    """Turn a model in place, so that its front looks at azimuth 0."""
    a = np.radians(degrees)
    turn = np.array([[np.cos(a), 0, np.sin(a)], [0, 1, 0], [-np.sin(a), 0, np.cos(a)]], np.float32)
    for part in parts:
        part.position, part.normal = part.position @ turn.T, part.normal @ turn.T


def _parse_obj(archive: zipfile.ZipFile, text: str, folder: str) -> list[Part]:
    vertices: list[list[float]] = []
    uvs: list[list[float]] = []
    normals: list[list[float]] = []
    groups: dict[str, list[tuple[tuple[int, int, int], ...]]] = {}
    materials: dict[str, Material] = {}
    current = "default"
    for line in text.splitlines():
        word, _, rest = line.strip().partition(" ")
        if word == "v":
            vertices.append([float(x) for x in rest.split()[:3]])
        elif word == "vt":
            uvs.append([float(x) for x in rest.split()[:2]])
        elif word == "vn":
            normals.append([float(x) for x in rest.split()[:3]])
        elif word == "usemtl":
            current = rest.strip()
        elif word == "mtllib":
            materials.update(_read_mtl(archive, f"{folder}/{rest.strip()}"))
        elif word == "f":
            polygon = [_corner(token) for token in rest.split()]
            groups.setdefault(current, []).extend(_triangles(polygon, vertices))
    table_v = np.array(vertices, np.float32)
    table_t = np.array(uvs or [[0, 0]], np.float32)
    table_n = np.array(normals or [[0, 1, 0]], np.float32)
    return [
        _part(name, materials.get(name, Material()), faces, table_v, table_t, table_n)
        for name, faces in groups.items()
    ]


def _triangles(polygon: list[tuple[int, int, int]], vertices: list[list[float]]):
    """Cut a polygon into triangles; with five corners and more it may be concave (ear clipping)."""
    if len(polygon) <= 4:
        return [(polygon[0], polygon[i], polygon[i + 1]) for i in range(1, len(polygon) - 1)]
    points = np.array([vertices[v - 1 if v > 0 else v] for v, _, _ in polygon], np.float64)
    # Newell's method: the normal of a polygon that need not be plane or convex.
    after = np.roll(points, -1, axis=0)
    normal = np.cross(points - points[0], after - points[0]).sum(0)
    keep = [axis for axis in range(3) if axis != int(np.abs(normal).argmax())]
    flat = np.ascontiguousarray(points[:, keep])
    index = mapbox_earcut.triangulate_float64(flat, np.array([len(flat)], np.uint32)).reshape(-1, 3)
    area = np.cross(
        points[index[:, 1]] - points[index[:, 0]], points[index[:, 2]] - points[index[:, 0]]
    )
    flip = (area @ normal) < 0
    return [
        tuple(polygon[i] for i in (triangle[::-1] if turned else triangle))
        for triangle, turned in zip(index.tolist(), flip.tolist(), strict=True)
    ]


def _corner(token: str) -> tuple[int, int, int]:
    v, t, n = [*token.split("/"), "", ""][:3]
    return int(v), int(t or 0), int(n or 0)


def _part(name, material, faces, table_v, table_t, table_n) -> Part:
    index = np.array(faces, np.int64).reshape(-1, 3)

    def zero_based(column: np.ndarray, size: int) -> np.ndarray:
        return np.where(column > 0, column - 1, np.where(column < 0, size + column, -1))

    v = zero_based(index[:, 0], len(table_v))
    t = zero_based(index[:, 1], len(table_t))
    n = zero_based(index[:, 2], len(table_n))
    position = table_v[v]
    uv = table_t[np.clip(t, 0, len(table_t) - 1)].copy()
    uv[:, 1] = 1 - uv[:, 1]
    flat = np.cross(position[1::3] - position[0::3], position[2::3] - position[0::3])
    smooth = _smooth_normals(v, flat)
    given = table_n[np.clip(n, 0, len(table_n) - 1)]
    normal = np.where((n >= 0)[:, None], given, smooth).astype(np.float32)
    return Part(name, material, position, normal, uv)


def _smooth_normals(vertex: np.ndarray, face_normal: np.ndarray) -> np.ndarray:
    """Average face normals over each vertex, except across creases (see CREASE_COS)."""
    own = np.repeat(face_normal, 3, axis=0)
    total = np.zeros((int(vertex.max()) + 1, 3))
    np.add.at(total, vertex, own)
    mean = total[vertex]
    cosine = (own * mean).sum(1) / np.maximum(
        np.linalg.norm(own, axis=1) * np.linalg.norm(mean, axis=1), 1e-12
    )
    return np.where((cosine > CREASE_COS)[:, None], mean, own)


def _read_mtl(archive: zipfile.ZipFile, path: str) -> dict[str, Material]:
    if path not in archive.namelist():
        return {}
    materials: dict[str, Material] = {}
    entry = Material()
    for line in archive.read(path).decode("latin1").splitlines():
        word, _, rest = line.strip().partition(" ")
        if word == "newmtl":
            entry = materials.setdefault(rest.strip(), Material())
        elif word == "Kd":
            r, g, b = (float(x) for x in rest.split()[:3])
            entry.diffuse = (r, g, b)
        elif word == "Ks":
            entry.specular = float(np.mean([float(x) for x in rest.split()[:3]]))
        elif word == "Ns":
            entry.exponent = float(rest.split()[0])
        elif word == "d":
            entry.opacity = float(rest.split()[0])
        elif word == "map_Kd":
            entry.texture_name = re.split(r"[\\/]", rest.strip())[-1]
            entry.texture = _read_texture(
                archive, f"{posixpath.dirname(path)}/{entry.texture_name}"
            )
    return materials


def _read_texture(archive: zipfile.ZipFile, path: str) -> np.ndarray | None:
    if path not in archive.namelist():
        return None
    image = Image.open(io.BytesIO(archive.read(path))).convert("RGBA")
    image.thumbnail((512, 512))
    return np.asarray(image).astype(np.float32) / 255
