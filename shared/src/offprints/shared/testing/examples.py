"""`check_examples`: the ``Example:`` of every public object runs, and gives what it shows.

An example is a section ``Example:`` of the docstring, in Google style, written as a doctest, of at most six lines::

    Example:
        >>> logits, labels = torch.tensor([[2.0, 0.0]]), torch.tensor([0])
        >>> comp_sum_loss(logits, labels, tau=2.0)
        tensor(0.1125)

`torch`, `np` and the package's public names are there already, as in torch's own documentation; other names are
imported by the example, and such lines do not count. At least one result is shown. Dots (``...``) in a result stand for
anything, runs of spaces are equal, and the global seed is 0 at the start of each example::

    check_examples("cotta", skip={"CoTTA": "not yet: needs a model"})
"""

from __future__ import annotations

import doctest
import importlib
import inspect
import textwrap
import warnings
from types import ModuleType
from typing import Any

from offprints.shared.testing._properties import Skip, preserved_random_state, seed_globally

LONGEST = 6
_FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def check_examples(name: str, *, skip: Skip | None = None) -> None:
    """Run the example of every public class and function of a package; report all failures together.

    Exceptions, and what the package takes from elsewhere, need none. Examples of public methods are run where there
    are some.

    Args:
        name: The paper's name: the distribution is ``offprints-<name>``.
        skip: Public name to the reason why it has no example.

    Raises:
        AssertionError: Objects without an example, and examples that fail, are too long or show nothing.
        ValueError: `skip` names what is not such an object, or gives no reason.
    """
    module = importlib.import_module(f"offprints.{name.replace('-', '_')}")
    objects = {key: getattr(module, key) for key in module.__all__}
    objects = {key: value for key, value in objects.items() if _needs_example(value, module)}
    for key, reason in (skip or {}).items():
        if key not in objects:
            raise ValueError(f"skip names {key!r}; the objects with examples are {', '.join(objects)}")
        if not reason:
            raise ValueError(f"skip[{key!r}] needs a reason")
    failures = []
    for key, value in objects.items():
        if key in (skip or {}):
            continue
        if (source := example_of(value)) is None:
            failures.append(f"{key}: there is no Example: in the docstring")
        elif trouble := run_example(source, key, module):
            failures.append(f"{key}: {trouble}")
        for method, member in vars(value).items() if inspect.isclass(value) else ():
            if method.startswith("_") or (source := example_of(member)) is None:
                continue
            if trouble := run_example(source, f"{key}.{method}", module):
                failures.append(f"{key}.{method}: {trouble}")
    if failures:
        lines = "\n".join(failures)
        raise AssertionError(f"check_examples of offprints-{name}: {len(failures)} objects:\n{lines}")


def _needs_example(value: Any, module: ModuleType) -> bool:
    if inspect.isclass(value) and issubclass(value, BaseException):
        return False
    named = inspect.isclass(value) or inspect.isroutine(value)
    return named and str(getattr(value, "__module__", "")).split(".")[:2] == module.__name__.split(".")[:2]


def example_of(value: Any) -> str | None:
    """Return what stands under ``Example:`` in an object's own docstring, without its indentation."""
    # A class without a docstring would show its parent's, which is another object's example.
    own = vars(value).get("__doc__") if inspect.isclass(value) else getattr(value, "__doc__", None)
    lines = inspect.cleandoc(own).splitlines() if isinstance(own, str) else []
    for number, line in enumerate(lines):
        if line.strip() in ("Example:", "Examples:"):
            indent = len(line) - len(line.lstrip())
            body = []
            for following in lines[number + 1 :]:
                if following.strip() and len(following) - len(following.lstrip()) <= indent:
                    break
                body.append(following)
            return textwrap.dedent("\n".join(body)).strip("\n") or None
    return None


def run_example(source: str, name: str, module: ModuleType) -> str | None:
    """Run one example; return what is wrong with it."""
    import numpy as np
    import torch

    parsed = doctest.DocTestParser().get_examples(source)
    if not parsed:
        return "the example is not written with >>>"
    lines = [
        line for example in parsed for line in example.source.splitlines() if not line.startswith(("import ", "from "))
    ]
    if len(lines) > LONGEST:
        return f"the example has {len(lines)} lines, at most {LONGEST} are allowed"
    if not any(example.want for example in parsed):
        return "the example shows no result"
    exported = getattr(module, "__all__", [key for key in dir(module) if not key.startswith("_")])
    names = {"torch": torch, "np": np, **{key: getattr(module, key) for key in exported}}
    test = doctest.DocTest(parsed, {**names, "__name__": "__main__"}, name, None, None, source)
    told: list[str] = []
    with preserved_random_state(), warnings.catch_warnings():
        seed_globally(0)
        doctest.DocTestRunner(optionflags=_FLAGS, verbose=False).run(test, out=told.append, clear_globs=False)
    return "\n" + textwrap.indent("".join(told).strip("*\n"), "    ") if told else None
