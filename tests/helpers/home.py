"""Fixtures: a home for the command line with a tiny model and a migrated database."""

import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog

from tests.helpers.command_line import make_tiny_model, settings_for


@pytest.fixture(scope="session")
def tiny_model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny base model and generator on disk, shared by all tests."""
    folder = tmp_path_factory.mktemp("model")
    make_tiny_model(folder)
    return folder


@pytest.fixture
def empty_home(
    tiny_model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Path]:
    """A working folder with settings for the tiny model; no database yet."""
    for name in [name for name in os.environ if name.startswith("MEMORY_SERVICE_")]:
        monkeypatch.delenv(name)
    for name, value in settings_for(tiny_model_folder, tmp_path).items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    handlers, level = logging.root.handlers[:], logging.root.level
    yield tmp_path
    logging.root.handlers[:], logging.root.level = handlers, level
    structlog.reset_defaults()


@pytest.fixture
def home(empty_home: Path, sqlite_template: Path) -> Path:
    """The same with a migrated database."""
    shutil.copy(sqlite_template, empty_home / "memory.db")
    return empty_home
