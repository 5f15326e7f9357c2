"""Rules of the code base that no linter knows."""

import ast
import inspect
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

import memory_service
from memory_service import errors
from memory_service.settings import Settings

ROOT = Path(__file__).parent.parent
CODE_FOLDERS = ("memory_service", "cli", "migrations", "examples", "docs")
CODE = sorted(file for folder in CODE_FOLDERS for file in (ROOT / folder).rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))
LINES_OF_CODE, LINES_OF_TESTS = 500, 800


def name(file: Path) -> str:
    return str(file.relative_to(ROOT))


def tree(file: Path) -> ast.Module:
    return ast.parse(file.read_text(), str(file))


def imported(file: Path) -> set[str]:
    """Modules that a file imports, wherever in it."""
    found = set()
    for node in ast.walk(tree(file)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module or "")
    return found


def test_files_are_small_enough_to_read() -> None:
    limits = {file: LINES_OF_CODE for file in CODE} | {file: LINES_OF_TESTS for file in TESTS}
    lines = {file: len(file.read_text().splitlines()) for file in limits}
    assert not [f"{name(file)}: {lines[file]}" for file in limits if lines[file] > limits[file]]


def test_every_file_says_what_it_is() -> None:
    silent = [name(file) for file in CODE if file.read_text() and not ast.get_docstring(tree(file))]
    assert not silent


def test_package_code_asserts_only_with_a_reason_given_in_the_assert() -> None:
    bare = [
        f"{name(file)}:{node.lineno}"
        for file in CODE
        for node in ast.walk(tree(file))
        if isinstance(node, ast.Assert) and node.msg is None
    ]
    assert not bare


def test_migrations_never_import_the_generator() -> None:
    for file in (ROOT / "migrations").rglob("*.py"):
        assert not {module for module in imported(file) if "generator" in module}, name(file)


def test_only_one_file_of_the_command_line_prints() -> None:
    printing = {
        name(file)
        for file in (ROOT / "cli").rglob("*.py")
        for node in ast.walk(tree(file))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id in {"print", "input"}
    }
    assert printing <= {"cli/output.py"}
    assert not [
        name(file)
        for file in (ROOT / "cli").glob("*.py")
        if file.name != "output.py" and any(module.startswith("rich") for module in imported(file))
    ]


def test_every_error_has_a_code_of_its_own_and_knows_no_status() -> None:
    kinds = [
        kind
        for _, kind in inspect.getmembers(errors, inspect.isclass)
        if issubclass(kind, errors.MemoryServiceError)
    ]
    codes = [kind.code for kind in kinds]
    assert len(codes) == len(set(codes))
    assert all(re.fullmatch(r"[a-z_]+", code) for code in codes)
    tree_text = errors.__doc__ or ""
    assert all(kind.__name__ in tree_text for kind in kinds)
    assert not re.search(r"\b(http|exit)_?(status|code)\s*[:=]", inspect.getsource(errors))


def test_every_setting_is_described() -> None:
    assert not [key for key, field in Settings.model_fields.items() if not field.description]


def test_the_version_is_that_of_the_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["version"] == memory_service.__version__


def test_every_package_is_installed() -> None:
    """A folder that pyproject.toml does not list would be missing from the wheel."""
    setuptools = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    folders = {file.parent for file in (ROOT / "memory_service").rglob("*.py")}
    names = {".".join(folder.relative_to(ROOT).parts) for folder in folders}
    assert names <= set(setuptools["packages"])


def test_the_generated_pages_are_up_to_date() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "docs" / "generate.py"), "--check"],
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


def test_every_requirement_is_in_the_constraints() -> None:
    pinned = {
        project.lower(): Version(version)
        for project, _, version in (
            line.partition("==") for line in (ROOT / "constraints.txt").read_text().splitlines()
        )
        if version and not project.startswith("#")
    }
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    requirements = [Requirement(line) for line in declared]
    assert not [one.name for one in requirements if one.name.lower() not in pinned]
    assert not [str(one) for one in requirements if pinned[one.name.lower()] not in one.specifier]


@pytest.mark.parametrize("target", ["demo", "setup", "test", "check", "fix", "docs"])
def test_the_readme_and_the_makefile_agree(target: str) -> None:
    assert f"make {target}" in (ROOT / "README.md").read_text()
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.M)
