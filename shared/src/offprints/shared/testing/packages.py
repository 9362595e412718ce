"""`check_package`: a paper's package keeps the form that all of them have.

::

    check_package("betti-matching")
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.resources
import inspect
import json
import re
import subprocess
import sys
from collections.abc import Callable, Collection
from pathlib import Path
from types import ModuleType
from urllib.parse import urlparse
from urllib.request import url2pathname

from offprints.shared.testing._properties import Skip, parts_of, run_properties
from offprints.shared.testing._sources import check_apart, check_reference, check_table
from offprints.shared.testing.examples import check_examples

SECTIONS = ("Install", "Use", "Claims", "Benchmarks", "Citation")
PRESETS = {"smoke", "quick", "paper"}
HEAVY = (
    "torch._dynamo",
    "sklearn",
    "numba",
    "pandas",
    "matplotlib",
    "torchvision",
    "skimage",
    "timm",
    "transformers",
    "diffusers",
    "flwr",
    "onnx",
)


def check_package(
    name: str,
    *,
    public: Collection[str] | None = None,
    imports: Collection[str] = (),
    skip: Skip | None = None,
) -> None:
    """Check an installed package.

    Properties, in order: *public names* (``__all__`` has no repetition, all exist, nothing else is public, equal to
    `public` where given), *docstrings* (of every public function and class, and of their public methods), *typed*
    (``py.typed``), *namespace* (there is no ``offprints/__init__.py``), *readme* (the sections), *license*,
    *experiment* (the entry point gives an Experiment of this name with the three presets), *light import* (in a fresh
    process), *method apart* (nothing outside ``reproduce/`` imports it or ``offprints.shared.experiment``),
    *reference* (``reference.py`` is there, imports, and has at most 100 lines), *the paper in the code* (a section of
    the README with a table; every name in backticks in its column *Code* is in the package, or in full beside it),
    *examples* (`check_examples`; a part is "examples: NAME").

    Args:
        name: The paper's name: the distribution is ``offprints-<name>``.
        public: The public API, name by name.
        imports: Of the heavy modules (`HEAVY`), those that importing the package may import.
        skip: Property to reason; of examples also a part: ``{"examples: CoTTA": "reason"}``.
    """
    distribution = importlib.metadata.distribution(f"offprints-{name}")
    module = importlib.import_module(f"offprints.{name.replace('-', '_')}")
    properties: dict[str, Callable[[], None]] = {
        "public names": lambda: _check_names(module, public),
        "docstrings": lambda: _check_docstrings(module),
        "typed": lambda: _check_typed(module),
        "namespace": _check_namespace,
        "readme": lambda: _check_readme(distribution),
        "license": lambda: _check_license(distribution),
        "experiment": lambda: _check_experiment(name, distribution),
        "light import": lambda: _check_import(module.__name__, imports),
        "method apart": lambda: check_apart(module),
        "reference": lambda: check_reference(module),
        "the paper in the code": lambda: check_table(_readme(distribution), module),
        "examples": lambda: check_examples(name, skip=parts_of(skip, "examples")),
    }
    run_properties("check_package", f"offprints-{name}", properties, skip, parts=("examples",))


def _check_names(module: ModuleType, public: Collection[str] | None) -> None:
    exported = list(module.__all__)
    if len(set(exported)) != len(exported):
        raise AssertionError(f"__all__ repeats {sorted({n for n in exported if exported.count(n) > 1})}")
    missing = [name for name in exported if not hasattr(module, name)]
    if missing:
        raise AssertionError(f"__all__ names what does not exist: {missing}")
    found = {n for n, v in vars(module).items() if not n.startswith("_") and not inspect.ismodule(v)}
    if extra := sorted(found - set(exported) - {"annotations", "TYPE_CHECKING"}):
        raise AssertionError(f"public, but not in __all__: {extra}")
    if public is not None and set(public) != set(exported):
        lacking, extra = sorted(set(public) - set(exported)), sorted(set(exported) - set(public))
        raise AssertionError(f"__all__ lacks {lacking} and has {extra} beyond the specification")


def _check_docstrings(module: ModuleType) -> None:
    silent = []
    for name in module.__all__:
        member = getattr(module, name)
        if not (inspect.isclass(member) or inspect.isfunction(member)):
            continue
        if not (member.__doc__ or "").strip() or (member.__doc__ or "").startswith(f"{name}("):  # a dataclass' default
            silent.append(name)
        if inspect.isclass(member) and member.__module__.startswith(module.__name__):
            silent += [
                f"{name}.{method}"
                for method, value in vars(member).items()
                if inspect.isfunction(value)
                and not method.startswith("_")
                and not inspect.getdoc(getattr(member, method))
            ]
    if silent:
        raise AssertionError(f"without a docstring: {', '.join(silent)}")


def _check_typed(module: ModuleType) -> None:
    if not importlib.resources.files(module).joinpath("py.typed").is_file():
        raise AssertionError(f"{module.__name__} ships no py.typed")


def _check_namespace() -> None:
    if getattr(importlib.import_module("offprints"), "__file__", None) is not None:
        raise AssertionError("offprints has an __init__.py: it must be a namespace package")


def _readme(distribution: importlib.metadata.Distribution) -> str:
    """Return the README: of an editable install as it is now, not as it was when installed."""
    origin = json.loads(distribution.read_text("direct_url.json") or "{}")
    if origin.get("dir_info", {}).get("editable"):
        path = Path(url2pathname(urlparse(origin["url"]).path)) / "README.md"
        if path.is_file():
            return path.read_text(encoding="utf-8")
    return str(distribution.metadata.json.get("description", ""))


def _check_readme(distribution: importlib.metadata.Distribution) -> None:
    text = _readme(distribution)
    missing = [s for s in SECTIONS if not re.search(rf"^## +{s}\b", text, re.MULTILINE)]
    if missing:
        raise AssertionError(f"README.md lacks the sections {', '.join(missing)}")
    if "```python" not in text:
        raise AssertionError("README.md has no ```python block")


def _check_license(distribution: importlib.metadata.Distribution) -> None:
    declared = distribution.metadata.get_all("License-File") or []
    if "LICENSE" not in declared or not distribution.metadata.get_all("License-Expression"):
        raise AssertionError(f"the metadata declare the license files {declared}")
    shipped = [str(file) for file in distribution.files or [] if file.name == "LICENSE"]
    editable = '"editable":true' in (distribution.read_text("direct_url.json") or "").replace(" ", "")
    if not shipped and not editable:  # an editable install is not a wheel: its license lies in the source folder
        raise AssertionError("the wheel holds no LICENSE")


def _check_experiment(name: str, distribution: importlib.metadata.Distribution) -> None:
    from offprints.shared.experiment import Experiment

    entries = distribution.entry_points.select(group="offprints.papers")
    if [entry.name for entry in entries] != [name]:
        raise AssertionError(f"entry points {[entry.name for entry in entries]} instead of [{name!r}]")
    experiment = next(iter(entries)).load()
    if not isinstance(experiment, Experiment):
        raise AssertionError(f"the entry point gives {type(experiment).__name__}, not an Experiment")
    if experiment.name != name:
        raise AssertionError(f"the experiment is called {experiment.name!r}")
    if not set(experiment.presets) >= PRESETS:
        raise AssertionError(f"the presets are {sorted(experiment.presets)}")


def _check_import(module: str, allowed: Collection[str]) -> None:
    # An interpreter of its own: `fresh_process` may have preloaded what its parent has, and would hide it.
    source = (
        f"import sys; sys.path[:] = {sys.path!r}; import torch; before = set(sys.modules); import {module}; "
        f"print(*[name for name in {HEAVY!r} if name in sys.modules and name not in before])"
    )
    command = [sys.executable, "-W", "ignore", "-c", source]
    output = subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stdout
    heavy = [name for name in output.split() if name not in allowed]
    if heavy:
        raise AssertionError(f"importing {module} imports {', '.join(heavy)}: import them where they are used")
