"""Shape strings are made of the words of shapes.py, and the tests really check them."""

import ast
from collections.abc import Iterator
from pathlib import Path

import jaxtyping
import pytest
import torch

import memory_service.generator
from memory_service.generator.injection import adapter_output
from memory_service.generator.shapes import DIMENSIONS

PACKAGE = Path(memory_service.generator.__file__).parent
MODULES = sorted(path for path in PACKAGE.glob("*.py") if path.name != "__init__.py")


def annotations(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and shape string of every jaxtyping annotation."""
    imported = {
        alias.asname or alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module == "jaxtyping"
        for alias in node.names
    }
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Subscript)
            and isinstance(node.value, ast.Name)
            and node.value.id in imported
        ):
            assert isinstance(node.slice, ast.Tuple), f"line {node.lineno}: no shape"
            shape = node.slice.elts[1]
            assert isinstance(shape, ast.Constant), f"line {node.lineno}: shape is no literal"
            yield node.lineno, shape.value


def contractions(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and pattern of every einops.einsum."""
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Name)
            and node.func.id == "einsum"
        ):
            pattern = node.args[-1]
            assert isinstance(pattern, ast.Constant)
            yield node.lineno, pattern.value


def functions(tree: ast.Module) -> Iterator[ast.FunctionDef]:
    """Public functions and methods."""
    bodies = [tree.body, *(node.body for node in tree.body if isinstance(node, ast.ClassDef))]
    for node in (node for body in bodies for node in body):
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            yield node


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_annotations_use_only_the_known_words(path: Path) -> None:
    for line, shape in annotations(ast.parse(path.read_text())):
        words = shape.split()
        unknown = {word.removeprefix("*") for word in words} - set(DIMENSIONS)
        assert not unknown, f"{path.name}:{line}: {shape!r} has {unknown}"
        assert {word for word in words if word.startswith("*")} <= {"*batch"}, f"{path.name}:{line}"
        if len(words) == 1:
            assert shape.startswith(" "), f"{path.name}:{line}: {shape!r} must start with a space"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_contractions_use_only_the_known_words(path: Path) -> None:
    for line, pattern in contractions(ast.parse(path.read_text())):
        words = set(pattern.replace(",", " ").replace("->", " ").replace("...", " ").split())
        assert words <= set(DIMENSIONS), f"{path.name}:{line}: {words - set(DIMENSIONS)}"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_public_functions_name_the_dimensions_of_their_tensors(path: Path) -> None:
    for function in functions(ast.parse(path.read_text())):
        arguments = function.args.posonlyargs + function.args.args + function.args.kwonlyargs
        given = [argument.annotation for argument in arguments] + [function.returns]
        bare = [node for node in given if isinstance(node, ast.Name) and node.id == "Tensor"]
        assert not bare, f"{path.name}:{function.lineno}: {function.name} has a bare Tensor"


def test_every_word_is_used() -> None:
    trees = [ast.parse(path.read_text()) for path in MODULES]
    shapes = [shape for tree in trees for _, shape in annotations(tree)]
    used = {word.removeprefix("*") for shape in shapes for word in shape.split()}
    assert used == set(DIMENSIONS)


def test_the_hook_is_active() -> None:
    """Else every shape in this package would be an unchecked comment."""
    with pytest.raises(jaxtyping.TypeCheckError):
        adapter_output(
            torch.zeros(2, 3, 4), torch.zeros(5, 4), torch.zeros(2, 6, 7), torch.zeros(8, 7)
        )
