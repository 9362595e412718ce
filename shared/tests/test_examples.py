"""Every public function and class of the core that a method uses has an example, and the example is true."""

from __future__ import annotations

import importlib
import inspect

import pytest

from offprints.shared.testing.examples import example_of, run_example

MODULES = ("device", "distributed", "datasets", "estimators", "labels", "lazy", "tables", "extras", "validation")
WITHOUT = {
    "vision_dataset": "its data are not here",
    "image_folder": "it needs a folder of the user's",
}


def public(name: str) -> list[tuple[str, object]]:
    module = importlib.import_module(f"offprints.shared.{name}")
    return [
        (key, value)
        for key, value in vars(module).items()
        if not key.startswith("_")
        and getattr(value, "__module__", None) == module.__name__
        and (inspect.isfunction(value) or inspect.isclass(value))
        and not (inspect.isclass(value) and issubclass(value, BaseException))
    ]


OBJECTS = [(module, name) for module in MODULES for name, _ in public(module)]


@pytest.mark.parametrize(("module", "name"), OBJECTS, ids=[".".join(pair) for pair in OBJECTS])
def test_example(module: str, name: str) -> None:
    source = importlib.import_module(f"offprints.shared.{module}")
    example = example_of(getattr(source, name))
    if name in WITHOUT:
        assert example is None
        return
    assert example is not None, f"{name} has no example"
    if module == "estimators":
        _ = source.NotFittedError  # made when it is asked for
    assert run_example(example, name, source) is None
