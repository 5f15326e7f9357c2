"""A base model as files on disk: which they are, whether they are whole, and their digest."""

import hashlib
import json
import re
import uuid
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from memory_service.errors import ConfigurationError

DEFAULT_BASE_MODEL = "smollm2-135m-instruct"

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
"""The default's name, or `org/model` on the Hugging Face hub."""

MANIFEST = "manifest.json"
"""Beside a pulled model: name, source and digest as they were when it was pulled."""

DIGEST_CACHE = "weights-digest.json"
HASH_BLOCK_BYTES = 1 << 20


@dataclass(frozen=True)
class BaseModelFiles:
    """A local Hugging Face directory that is ready to load.

    `digest` is the SHA-256 over the contents of the weight files in the order of their names.
    """

    name: str
    path: Path
    digest: str
    size_bytes: int


def folder_of(name: str) -> str:
    """The directory inside the model cache that belongs to a name."""
    return name.replace("/", "--")


def from_manifest(name: str, cache_dir: Path, *, trust_cache: bool = True) -> BaseModelFiles:
    """Describe a pulled model, after comparing its weights with what was pulled.

    Raises:
        ConfigurationError: files are missing, or not those that were pulled.
    """
    folder = cache_dir / folder_of(name)
    manifest = read_json(folder / MANIFEST)
    if manifest is None:
        raise damaged(name, f"{folder} has no readable {MANIFEST}")
    files = describe(name, Path(manifest.get("path", folder)), trust_cache=trust_cache)
    if files.digest != manifest.get("digest"):
        raise damaged(name, f"the weights in {files.path} are not those that were pulled")
    return files


def describe(name: str, path: Path, *, trust_cache: bool = True) -> BaseModelFiles:
    """Look at a Hugging Face directory; its digest is computed once per state of its files.

    Raises:
        ConfigurationError: files are missing.
    """
    if not (path / "config.json").is_file():
        raise damaged(name, f"{path} has no config.json")
    weights = _weight_files(name, path)
    stats = {file.name: file.stat() for file in weights}
    stamps = {key: [stat.st_size, stat.st_mtime_ns] for key, stat in stats.items()}
    cached = read_json(path / DIGEST_CACHE) if trust_cache else None
    if cached is not None and cached.get("files") == stamps and "digest" in cached:
        digest = str(cached["digest"])
    else:
        digest = hash_files(weights)
        with suppress(OSError):  # a directory that may not be written is hashed at each start
            write_json(path / DIGEST_CACHE, {"digest": digest, "files": stamps})
    return BaseModelFiles(name, path, digest, sum(stat.st_size for stat in stats.values()))


def hash_files(files: list[Path]) -> str:
    """SHA-256 over the contents of files, one after the other."""
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            while block := stream.read(HASH_BLOCK_BYTES):
                digest.update(block)
    return digest.hexdigest()


def damaged(name: str, problem: str) -> ConfigurationError:
    """The error for a model whose files cannot be used, with the way out."""
    is_directory = Path(name).is_absolute()
    remedy = "copy the directory again" if is_directory else f"run `{pull_command(name)}`"
    return ConfigurationError(f"base model {name}", problem, remedy)


def pull_command(name: str) -> str:
    """The command that gets a model; the default where `name` cannot be pulled."""
    is_default = name == DEFAULT_BASE_MODEL or not HUB_ID.fullmatch(name)
    return "memory models pull" + ("" if is_default else f" {name}")


def read_json(path: Path) -> dict[str, Any] | None:
    """The object in a JSON file; None where there is none."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write so that a reader sees the old file or the new one, never a part."""
    made = path.with_name(f".{path.name}-{uuid.uuid4().hex}")
    try:
        made.write_text(json.dumps(content, indent=2) + "\n")
        made.replace(path)
    finally:
        made.unlink(missing_ok=True)


def _weight_files(name: str, path: Path) -> list[Path]:
    """The safetensors files of a model; pickled weights are refused, they can run code."""
    index = path / "model.safetensors.index.json"
    names = ["model.safetensors"]
    if index.is_file():
        content = read_json(index) or {}
        names = sorted(set(content.get("weight_map", {}).values()))
    missing = [file for file in names if not (path / file).is_file()]
    if missing or not names:
        raise damaged(name, f"{path} lacks {missing[0] if missing else 'weights'}")
    return [path / file for file in names]
