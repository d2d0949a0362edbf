"""A model folder on disk: what it holds, and whether it is what its manifest says.

The layout is diffusers': ``model_index.json``, one directory per component, safetensors only. Ours
may add ``tiny_vae``, ``image_encoder``, ``lexicon.json`` and ``manifest.json``. This module reads
no tensor and imports no torch: a broken folder is reported before anything heavy is loaded.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, cast

from packshot.core.errors import ModelCorrupt, ModelNotFound, UnsafeModel

__all__ = ["COMPONENTS", "OPTIONAL", "Component", "ModelFolder", "make_manifest", "read_json"]

INDEX, MANIFEST, LEXICON = "model_index.json", "manifest.json", "lexicon.json"
FULL_CHECK_BYTES = 200_000_000
"""Below this total every SHA-256 is checked on opening: some 0.1 s at worst."""

COMPONENTS: dict[str, tuple[str, ...]] = {
    "scheduler": ("scheduler_config.json",),
    "tokenizer": ("tokenizer_config.json", "vocab.json", "merges.txt"),
    "tokenizer_2": ("tokenizer_config.json", "vocab.json", "merges.txt"),
    "text_encoder": ("config.json",),
    "text_encoder_2": ("config.json",),
    "unet": ("config.json",),
    "vae": ("config.json",),
}
"""What every folder must hold: the files of each component, its config first."""

OPTIONAL: dict[str, tuple[str, ...]] = {
    "tiny_vae": ("config.json",),
    "image_encoder": ("config.json",),
    "feature_extractor": ("preprocessor_config.json",),
}

_WEIGHTS = {
    "text_encoder": "model",
    "text_encoder_2": "model",
    "image_encoder": "model",
    "unet": "diffusion_pytorch_model",
    "vae": "diffusion_pytorch_model",
    "tiny_vae": "diffusion_pytorch_model",
}
_PICKLES = frozenset({".bin", ".ckpt", ".pt", ".pth", ".pkl"})
_SAMPLE_BYTES = 65_536


@dataclass(frozen=True, slots=True)
class Component:
    """One part of the model: its directory, its config, and every file of it that is read."""

    directory: Path
    config: Mapping[str, Any]
    weights: tuple[Path, ...]
    files: tuple[Path, ...]


@dataclass(frozen=True, slots=True)
class ModelFolder:
    """A folder that has been opened, and found complete and as its manifest says.

    ``fingerprint`` (64 hex digits) is the same for the same files wherever they lie: a sum over the
    manifest, or without one over names, sizes and samples of the files' contents.
    """

    path: Path
    name: str
    version: str
    fingerprint: str
    components: Mapping[str, Component] = field(repr=False, compare=False)
    sums: Mapping[str, str] = field(default_factory=dict[str, str], repr=False, compare=False)
    """The SHA-256 of each file that the manifest lists, by its path in the folder."""

    @classmethod
    def open(cls, path: Path, *, verify: bool = False) -> ModelFolder:
        """Read and check the folder at ``path``.

        Files are compared with the manifest by SHA-256 if they have less than ``FULL_CHECK_BYTES``
        in all or ``verify`` is set, else by size. Raises ``ModelNotFound`` (the folder or a file is
        missing), ``ModelCorrupt`` (JSON, size or sum is wrong) or ``UnsafeModel`` (a pickle).
        """
        try:
            return cls._open(path, verify=verify)
        except OSError as error:
            raise ModelNotFound(f"{path} cannot be read: {error}.") from error

    @classmethod
    def _open(cls, path: Path, *, verify: bool) -> ModelFolder:
        _refuse_missing(path)
        _refuse_pickles(path)
        components = _find_components(path)
        manifest = read_json(path / MANIFEST) if (path / MANIFEST).is_file() else None
        if manifest is None:
            if verify:
                raise ModelNotFound(f"{path} has no {MANIFEST}, so its sums cannot be verified.")
            return cls(path, path.resolve().name, "", _sample_sum(path, components), components)
        files = _check_manifest(path, manifest, components, verify=verify)
        name, version = manifest.get("name", path.resolve().name), manifest.get("version", "")
        sums = {file: str(entry.get("sha256")) for file, entry in files.items()}
        return cls(path, str(name), str(version), _manifest_sum(files), components, sums)

    def has(self, component: str) -> bool:
        """Say whether the folder holds this component; only those of ``OPTIONAL`` may be absent."""
        return component in self.components

    def config(self, component: str) -> Mapping[str, Any]:
        """Return the component's config as in its JSON; ``ModelNotFound`` if it is absent."""
        return self._component(component).config

    def weights(self, component: str) -> tuple[Path, ...]:
        """Return the component's safetensors files; ``ModelNotFound`` if it is absent."""
        return self._component(component).weights

    def directory(self, component: str) -> Path:
        """Return where the component's files lie; ``ModelNotFound`` if it is absent."""
        return self._component(component).directory

    def content_sum(self, *components: str) -> str:
        """Return a sum (64 hex digits) over all bytes of these components' files, and their names.

        Without a manifest the files are read, which takes about a second per gigabyte.
        """
        total = hashlib.sha256()
        for file in sorted(file for name in components for file in self._component(name).files):
            name = file.relative_to(self.path).as_posix()
            total.update(f"{name}\0{self.sums.get(name) or _sha256(file)}\0".encode())
        return total.hexdigest()

    @property
    def lexicon_path(self) -> Path | None:
        """The list of what the model was trained on, or ``None`` for a general model."""
        path = self.path / LEXICON
        return path if path.is_file() else None

    def _component(self, name: str) -> Component:
        if name not in self.components:
            held = ", ".join(sorted(self.components))
            raise ModelNotFound(f"{self.path} has no component {name!r}; it holds {held}.")
        return self.components[name]


def make_manifest(path: Path, *, name: str, version: str) -> dict[str, Any]:
    """Return the manifest of every file below ``path``, to be written as ``manifest.json``.

    Hidden files are left out. Raises ``UnsafeModel`` if there is a pickle.
    """
    _refuse_pickles(path)
    entries: dict[str, dict[str, str | int]] = {}
    for file in sorted(path.rglob("*")):
        relative = file.relative_to(path)
        hidden = any(part.startswith(".") for part in relative.parts)
        if file.is_file() and not hidden and relative.as_posix() != MANIFEST:
            entries[relative.as_posix()] = {"sha256": _sha256(file), "bytes": file.stat().st_size}
    return {"format": 1, "name": name, "version": version, "files": entries}


def read_json(file: Path) -> dict[str, Any]:
    """Return the object that a JSON file holds; ``ModelCorrupt`` if it is not one."""
    try:
        data: object = json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ModelCorrupt(f"{file} is not valid JSON: {error}.") from error
    return _as_object(data, str(file))


def _refuse_missing(path: Path) -> None:
    if not path.is_dir():
        raise ModelNotFound(f"no model folder at {path}; expected a directory with {INDEX}.")
    if not (path / INDEX).is_file():
        raise ModelNotFound(f"{path} has no {INDEX}; expected a model in diffusers' folder layout.")
    kind = str(read_json(path / INDEX).get("_class_name"))
    if not kind.startswith("StableDiffusionXL"):
        raise ModelCorrupt(
            f"{path / INDEX}: _class_name is {kind!r}; supported: 'StableDiffusionXLPipeline'."
        )


def _refuse_pickles(path: Path) -> None:
    pickles = sorted(p.relative_to(path).as_posix() for p in path.rglob("*") if _is_pickle(p))
    if pickles:
        raise UnsafeModel(
            f"{path} holds {_some(pickles)}: a pickle can run any code when it is read. packshot "
            "reads safetensors only; convert the file or take it out of the folder."
        )


def _is_pickle(path: Path) -> bool:
    return path.suffix.lower() in _PICKLES and not path.is_dir()


def _find_components(path: Path) -> dict[str, Component]:
    found = {name: _read_component(path / name, files) for name, files in COMPONENTS.items()}
    for name, files in OPTIONAL.items():
        if (path / name / files[0]).is_file():
            found[name] = _read_component(path / name, files)
    return found


def _read_component(directory: Path, names: tuple[str, ...]) -> Component:
    files = tuple(directory / name for name in names)
    for file in files:
        if not file.is_file():
            raise ModelNotFound(f"{file} is missing; the model folder is not complete.")
    config = read_json(files[0])
    if directory.name not in _WEIGHTS:
        return Component(directory, config, (), files)
    weights, index = _find_weights(directory, _WEIGHTS[directory.name])
    return Component(directory, config, weights, (*files, *index, *weights))


def _find_weights(directory: Path, stem: str) -> tuple[tuple[Path, ...], tuple[Path, ...]]:
    """Return the weight files and the index that names them, if any; the plain name comes first."""
    for variant in ("", ".fp16"):
        whole = directory / f"{stem}{variant}.safetensors"
        if whole.is_file():
            return (whole,), ()
        for name in (f"{stem}.safetensors.index{variant}", f"{stem}{variant}.safetensors.index"):
            index = directory / f"{name}.json"
            if index.is_file():
                return _shards(index), (index,)
    raise ModelNotFound(
        f"{directory} has no weights; expected {stem}.safetensors, {stem}.fp16.safetensors or "
        f"{stem}.safetensors.index.json with its shards."
    )


def _shards(index: Path) -> tuple[Path, ...]:
    weight_map = _as_object(read_json(index).get("weight_map"), f"{index}: weight_map")
    names = sorted({str(name) for name in weight_map.values()})
    for name in names:
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise ModelCorrupt(f"{index} names the shard {name!r}; expected a file beside it.")
        if not (index.parent / name).is_file():
            raise ModelNotFound(f"{index.parent / name} is missing, and {index.name} names it.")
    if not names:
        raise ModelCorrupt(f"{index}: weight_map is empty; expected the shard of each weight.")
    return tuple(index.parent / name for name in names)


def _check_manifest(
    path: Path,
    manifest: Mapping[str, Any],
    components: Mapping[str, Component],
    *,
    verify: bool,
) -> dict[str, Any]:
    """Return the manifest's ``files`` once the folder agrees with them."""
    if manifest.get("format") != 1:
        raise ModelCorrupt(
            f"{path / MANIFEST}: format is {manifest.get('format')!r}; supported: 1."
        )
    files = _as_object(manifest.get("files"), f"{path / MANIFEST}: files")
    read = {f.relative_to(path).as_posix() for c in components.values() for f in c.files}
    unlisted = sorted({INDEX, *read, *([LEXICON] if (path / LEXICON).is_file() else [])} - {*files})
    if unlisted:
        raise ModelCorrupt(f"{path / MANIFEST} does not list {_some(unlisted)}; make it anew.")
    sizes = {name: _check_size(path, name, entry) for name, entry in files.items()}
    if verify or sum(sizes.values()) < FULL_CHECK_BYTES:
        for name, entry in files.items():
            _check_sum(path / name, str(entry.get("sha256")))
    return files


def _check_size(path: Path, name: str, entry: object) -> int:
    pure = PurePosixPath(name)
    if pure.is_absolute() or ".." in pure.parts:
        raise ModelCorrupt(f"{path / MANIFEST} names {name!r}; expected a path inside the folder.")
    file = path / name
    if not file.is_file():
        raise ModelNotFound(f"{file} is missing, and {MANIFEST} lists it; fetch the model again.")
    expected = _as_object(entry, f"{path / MANIFEST}: {name}").get("bytes")
    size = file.stat().st_size
    if size != expected:
        raise ModelCorrupt(
            f"{file} has {size} bytes; {MANIFEST} says {expected}. Fetch the model again."
        )
    return size


def _check_sum(file: Path, expected: str) -> None:
    got = _sha256(file)
    if got != expected:
        raise ModelCorrupt(
            f"{file} has SHA-256 {got[:12]}…; {MANIFEST} says {expected[:12]}…. "
            "Fetch the model again."
        )


def _manifest_sum(files: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()


def _sample_sum(path: Path, components: Mapping[str, Component]) -> str:
    """Return a sum over names, sizes and the start, middle and end of each file.

    Sizes alone would not do: two fine-tunings of one model have the same.
    """
    total = hashlib.sha256()
    files = {path / INDEX, *(f for c in components.values() for f in c.files)}
    for file in sorted(files):
        size = file.stat().st_size
        total.update(f"{file.relative_to(path).as_posix()}\0{size}\0".encode())
        with file.open("rb") as stream:
            for start in (0, size // 2, max(size - _SAMPLE_BYTES, 0)):
                stream.seek(start)
                total.update(stream.read(_SAMPLE_BYTES))
    return total.hexdigest()


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _as_object(data: object, what: str) -> dict[str, Any]:
    if not isinstance(data, dict):
        raise ModelCorrupt(f"{what} is a {type(data).__name__}; expected a JSON object.")
    return cast("dict[str, Any]", data)


def _some(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
