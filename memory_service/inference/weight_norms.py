"""Norms of a base model's weights, read from its files without loading the model."""

from collections.abc import Sequence

from safetensors import SafetensorError, safe_open

from memory_service.inference.model_files import BaseModelFiles


def weight_norms(files: BaseModelFiles, sites: Sequence[tuple[int, str]]) -> list[float] | None:
    """Frobenius norms of modules given as (decoder layer, path); None where one is not found.

    The names are those of the Llama and Mistral families.
    """
    names = [f"model.layers.{layer}.{path}.weight" for layer, path in sites]
    wanted, norms = set(names), dict[str, float]()
    try:
        for file in sorted(files.path.glob("*.safetensors")):
            with safe_open(file, framework="pt") as tensors:
                for name in wanted.intersection(tensors.keys()):
                    norms[name] = float(tensors.get_tensor(name).float().norm())
    except (OSError, SafetensorError):
        return None
    return [norms[name] for name in names] if wanted <= norms.keys() else None
