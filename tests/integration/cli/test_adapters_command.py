"""`memory adapters`."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.helpers.command_line import run


def remember(*texts: str) -> None:
    for text in texts:
        run("turns", "append", "ann", text, "--session", "s1")


def test_list_tells_every_version(home: Path) -> None:
    remember("one", "two")
    newest, oldest = run("adapters", "list", "ann", "--json").json
    assert (newest["adapter"], newest["turns"], oldest["adapter"]) == ("ann@2", 2, "ann@1")
    assert len(newest["fingerprint"]["digest"]) == 64
    assert set(newest["fingerprint"]) >= {"generator", "base_model", "tokenizer", "chunking"}
    assert "ann@2" in run("adapters", "list", "ann", "--limit", "1").out
    assert "ann@1" not in run("adapters", "list", "ann", "--limit", "1").out
    run("adapters", "list", "bob", code=4)


def test_show_tells_what_made_it_without_the_text(home: Path) -> None:
    remember("my secret word is xylophone", "two")
    shown = run("adapters", "show", "ann", "--json")
    assert "xylophone" not in shown.out
    record = shown.json
    assert record["shape"] == [2, 8, 6]
    assert record["strength"]["unit"] == "% of the module's weight norm"
    modules = record["strength"]["modules"]
    assert [(m["layer"], m["module"]) for m in modules] == [
        (0, "self_attn.o_proj"),
        (1, "self_attn.o_proj"),
    ]
    assert all(m["value"] > 0 for m in modules)
    (chunk,) = record["made_from"]
    assert chunk["session"] == "s1"
    assert len(chunk["turn_ids"]) == 2
    out = run("adapters", "show", "ann").out
    assert "xylophone" not in out
    for expected in ("ann@2", "LoRA of rank at most 8", "fingerprint", "█", "base model"):
        assert expected in out


def test_show_tells_the_text_on_request(home: Path) -> None:
    remember("my secret word is xylophone")
    assert "xylophone" in run("adapters", "show", "ann", "--turns").out
    record = run("adapters", "show", "ann", "--turns", "--json").json
    assert record["made_from"][0]["texts"] == [
        {"role": "user", "text": "my secret word is xylophone"}
    ]


def test_show_of_an_old_version_is_of_its_own_turns(home: Path) -> None:
    remember("one", "two", "three", "four")
    first = run("adapters", "show", "ann@1", "--json").json
    assert (first["turns"], first["shape"], first["strength"]) == (1, None, None)
    assert "no longer kept" in run("adapters", "show", "ann@1").err
    second = run("adapters", "show", "ann@2", "--json").json
    assert len(second["made_from"][0]["turn_ids"]) == 2
    assert (
        "no version named 'ann@9'; the newest is 4"
        in run("adapters", "show", "ann@9", code=4).error
    )


def test_show_works_without_generator_and_base_model(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    remember("one")
    monkeypatch.setenv("MEMORY_SERVICE_GENERATOR", str(home / "missing"))
    strength = run("adapters", "show", "ann", "--json").json["strength"]
    assert strength["unit"] == "norm of the read-out"
    assert [m["layer"] for m in strength["modules"]] == [0, 1]
    assert "norm of the read-out" in run("adapters", "show", "ann").out


def test_nothing_to_show_before_anything_is_encoded(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MEMORY_SERVICE_BASE_MODEL", "not-pulled")
    run("turns", "append", "ann", "hello", code=4)
    assert "none of its turns was encoded yet" in run("adapters", "show", "ann", code=4).error
    assert run("adapters", "list", "ann", "--json").json == []


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_export_writes_a_lora(home: Path, dtype: str) -> None:
    remember("one")
    exported = run("adapters", "export", "ann", "lora", "--dtype", dtype, "--json").json
    folder = home / "lora"
    assert exported["adapter"] == "ann@1"
    assert exported["directory"] == str(folder)
    assert exported["size_bytes"] == sum(file.stat().st_size for file in folder.iterdir())
    assert {file.name for file in folder.iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
    }
    tensors = load_file(folder / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {getattr(torch, dtype)}
    assert json.loads((folder / "adapter_config.json").read_text())["r"] == 8


def test_export_is_of_the_newest_version_only(home: Path) -> None:
    remember("one", "two")
    outcome = run("adapters", "export", "ann@1", "lora", code=4)
    assert "kept for the newest version only, which is 2" in outcome.error
    assert run("adapters", "export", "ann@2", "lora").out.startswith("ann@2: ")
    run("adapters", "export", "bob", "other", code=4)
    assert not (home / "other").exists()


def test_export_overwrites_nothing_and_leaves_nothing_half_written(home: Path) -> None:
    remember("one")
    (home / "full").mkdir()
    (home / "full" / "file").write_text("mine")
    assert "is not empty" in run("adapters", "export", "ann", "full", code=3).error
    assert [file.name for file in (home / "full").iterdir()] == ["file"]
    (home / "empty").mkdir()
    run("adapters", "export", "ann", "empty")
    assert "is not a folder" in run("adapters", "export", "ann", "full/file", code=3).error
    run("adapters", "export", "ann", "full/file/below", code=9)
    assert (
        "float32, bfloat16"
        in run("adapters", "export", "ann", "x", "--dtype", "int3", code=3).error
    )
    assert not (home / "x").exists()
    assert not list(home.rglob("*.partial"))
