"""The plugin's fixtures and markers, two_processes, check_package."""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import distributed as dist

from offprints.shared.testing import check_examples, check_package, packages
from offprints.shared.testing.plugin import python_blocks
from offprints.shared.testing.processes import fresh_process, two_processes

pytest_plugins = ["pytester"]


@pytest.fixture
def project(pytester: pytest.Pytester) -> pytest.Pytester:
    """A package folder with this plugin active and strict settings."""
    pytester.makefile(
        ".ini",
        # The pytest inside would rewrite what the one outside has imported.
        pytest="[pytest]\naddopts = --strict-markers --import-mode=importlib\n"
        "filterwarnings =\n  error\n  ignore::pytest.PytestAssertRewriteWarning",
    )
    return pytester


def test_plugin_and_suite_import_without_torch_and_hypothesis() -> None:
    code = (
        "import sys, offprints.shared.testing.plugin, offprints.shared.testing as suite; dir(suite);"
        "assert not {'torch', 'numpy', 'hypothesis'} & set(sys.modules), 'heavy'"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_suite_names_its_checks() -> None:
    from offprints.shared import testing

    for name in testing.__all__:
        assert getattr(testing, name).__name__ == name
    with pytest.raises(AttributeError, match="check_everything"):
        _ = testing.check_everything


def test_markers_skip_with_a_reason(project: pytest.Pytester) -> None:
    project.makepyfile(
        """
        import pytest
        @pytest.mark.gpu
        def test_gpu(): import torch; assert torch.cuda.is_available()
        @pytest.mark.slow
        def test_slow(): pass
        """
    )
    result = project.runpytest_inprocess("-rs")
    gpu = torch.cuda.is_available()
    result.assert_outcomes(skipped=1 if gpu else 2, passed=1 if gpu else 0)
    result.stdout.fnmatch_lines(["*slow: run with --slow*"])
    assert gpu or "needs a CUDA device" in result.stdout.str()
    project.runpytest_inprocess("--slow", "-k", "slow").assert_outcomes(passed=1, deselected=1)


def test_hypothesis_profile_is_loaded() -> None:
    from hypothesis import HealthCheck, settings

    assert settings.default.derandomize
    assert settings.default.deadline is None
    assert HealthCheck.too_slow in settings.default.suppress_health_check


def test_golden(project: pytest.Pytester) -> None:
    folder = project.mkdir("tests")
    (folder / "golden").mkdir()
    np.savez(folder / "golden" / "case.npz", x=np.arange(3.0), n=np.int64(2), names=np.array(["a", "b"]))
    np.savez(folder / "golden" / "objects.npz", x=np.array([None], dtype=object))
    (folder / "test_golden.py").write_text(
        """
import numpy, pytest, torch
@pytest.fixture(scope="module")
def case(golden): return golden("case")
def test_arrays(case):
    assert torch.equal(case["x"], torch.arange(3.0, dtype=torch.float64)) and int(case["n"]) == 2
    assert isinstance(case["names"], numpy.ndarray) and case["names"].tolist() == ["a", "b"]
def test_missing(golden):
    with pytest.raises(FileNotFoundError, match="other.npz; there are .'case.npz', 'objects"): golden("other")
def test_objects(golden):
    with pytest.raises(ValueError, match="pickle"): golden("objects.npz")
"""
    )
    project.runpytest_inprocess().assert_outcomes(passed=3)


def test_readme_example_runs_in_an_empty_folder(project: pytest.Pytester) -> None:
    project.makepyprojecttoml("")
    readme = """# p\n\n## Install\n```python\nraise SystemExit\n```\n## Use it
```python
from pathlib import Path
## not a heading
Path("out.txt").write_text("x")
```
and
```sh
exit 1
```
```python
files = [p.name for p in Path.cwd().iterdir()]
```
## Claims
```python
raise SystemExit
```
"""
    project.makefile(".md", README=readme)
    project.makepyfile("def test_it(readme_example): assert readme_example()['files'] == ['out.txt']")
    project.runpytest_inprocess().assert_outcomes(passed=1)
    assert not (project.path / "out.txt").exists()
    project.makefile(".md", README=readme.replace('Path("out.txt")', "1 / 0; Path"))
    result = project.runpytest_inprocess()
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*README.md:11: ZeroDivisionError*"])
    project.makefile(".md", README="## Use\nnothing\n")
    project.runpytest_inprocess().stdout.fnmatch_lines(["*has no ```python block under '## Use'*"])
    assert python_blocks("no headings", "Use") == []


def test_cli_runs_the_console_script(cli) -> None:
    done = cli("no-such-command", env={"OFFPRINTS_DATA": "/nowhere"})
    assert done.returncode == 2
    assert "no-such-command" in done.stderr
    assert "Traceback" not in done.stderr
    with pytest.raises(subprocess.TimeoutExpired):
        cli("list", timeout=0.001)


# Processes


class Box:
    def __init__(self, value: float) -> None:
        self.value = value


def boxed(rank: int, start: float, *, factor: float) -> Box:
    x = torch.tensor([start + rank])
    dist.all_reduce(x)
    return Box(float(x) * factor)


def test_two_processes_reduce_and_return_objects_of_this_module(two_processes) -> None:
    first, second = two_processes(boxed, 1.0, factor=2.0)
    assert isinstance(first, Box)
    assert first.value == second.value == 6.0


def test_two_processes_take_closures_and_start_clean() -> None:
    torch.manual_seed(5)
    factor = 3

    def facts(rank: int) -> tuple[object, ...]:
        place = [os.environ[name] for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE")]
        return rank * factor, place, os.getpid(), float(torch.rand(())), float(np.random.random())  # noqa: NPY002

    a, b = two_processes(facts)
    assert (a[0], b[0]) == (0, 3)
    assert (a[1], b[1]) == (["0", "0", "2"], ["1", "1", "2"])
    assert len({a[2], b[2], os.getpid()}) == 3
    assert a[3] != b[3]
    assert a[4] != b[4]


def test_a_failure_shows_the_traceback_and_does_not_wait() -> None:
    def fail(rank: int) -> None:
        if rank == 1:
            raise KeyError("the reason")
        dist.barrier()

    with pytest.raises(RuntimeError, match=r"(?s)rank 1 failed:\n.*test_testing_plugin.*KeyError: 'the reason'"):
        two_processes(fail)


def test_a_warning_fails_where_it_fails_here() -> None:
    with warnings.catch_warnings(), pytest.raises(RuntimeError, match="UserWarning: careful"):
        warnings.simplefilter("error")
        two_processes(lambda rank: warnings.warn("careful", stacklevel=1))


def test_a_death_and_a_hang_are_reported() -> None:
    with pytest.raises(RuntimeError, match="rank 1 died without an answer"):
        two_processes(lambda rank: os._exit(3) if rank else dist.barrier())
    with pytest.raises(TimeoutError, match=r"no answer from rank .* in 1 s"):
        two_processes(lambda rank: time.sleep(60 * rank), timeout=1)


def test_fresh_process_has_no_group() -> None:
    assert fresh_process(lambda: (dist.is_initialized(), "RANK" in os.environ, os.getpid() != 0)) == (
        False,
        False,
        True,
    )


# check_package, on packages installed into a folder on sys.path


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Write the distribution offprints-<name> into a folder on the path; return the name."""

    def write(name: str, **changes: str) -> str:
        files = {
            "__init__.py": "__all__ = ['solve']\nfrom json import dumps as _dumps\n"
            "def solve():\n    '''Solve.\n\n    Example:\n        >>> solve()\n        '1'\n    '''\n"
            "    return _dumps(1)\n",
            "reference.py": "",
            "py.typed": "",
            "reproduce.py": "from dataclasses import dataclass\nfrom offprints.shared.experiment import Experiment\n"
            "@dataclass(frozen=True, kw_only=True)\nclass Config:\n    '''None.'''\n"
            f"experiment = Experiment(name='{name}', title='T', arxiv='2211.15272', config=Config,"
            " presets={'smoke': Config(), 'quick': Config(), 'paper': Config()}, function=lambda config, run: None)\n",
            "entry_points.txt": f"[offprints.papers]\n{name} = offprints.{name}.reproduce:experiment\n",
            "README.md": "\n".join(f"## {s}" for s in packages.SECTIONS) + "\n```python\n```\n"
            "## The paper in the code\n| Paper | Code |\n| --- | --- |\n| Eq. 1 | `solve` |\n",
            "LICENSE": "Apache",
        } | changes
        folder, info = tmp_path / "offprints" / name, tmp_path / f"offprints_{name}-1.0.dist-info"
        folder.mkdir(parents=True)
        info.mkdir()
        for file, text in files.items():
            if file in ("entry_points.txt", "LICENSE"):
                (info / file).write_text(text)
            elif file != "README.md" and text is not None:
                (folder / file).write_text(text)
        metadata = f"Metadata-Version: 2.4\nName: offprints-{name}\nVersion: 1.0\nLicense-Expression: Apache-2.0\n"
        (info / "METADATA").write_text(f"{metadata}License-File: LICENSE\n\n{files['README.md']}")
        (info / "RECORD").write_text(f"{info.name}/LICENSE,,\n" if files["LICENSE"] else "")
        return name

    monkeypatch.syspath_prepend(tmp_path)
    return write


README = "\n".join(f"## {s}" for s in packages.SECTIONS) + "\n```python\n```\n"
TABLE = "## The paper in the code\n| Paper | Code |\n| --- | --- |\n"
SOLVE = """__all__ = ['solve']
def solve():
    '''Solve.

    Example:
        >>> solve()
        '1'
    '''
    return '1'
"""

BROKEN_PACKAGES = [
    ("public names", {"__init__.py": "__all__ = ['solve']\n"}),
    ("public names", {"__init__.py": "__all__ = ['pi', 'pi']\nfrom math import pi\n"}),
    ("public names", {"__init__.py": "__all__ = []\nfrom json import dumps\n"}),
    ("docstrings", {"__init__.py": "__all__ = ['solve']\ndef solve(): pass\n"}),
    ("docstrings", {"__init__.py": "__all__ = ['A']\nclass A:\n    '''A.'''\n    def run(self): pass\n"}),
    (
        "docstrings",
        {"__init__.py": "__all__ = ['A']\nfrom dataclasses import dataclass as _d\n@_d\nclass A:\n    x: int = 1\n"},
    ),
    ("typed", {"py.typed": None}),
    ("readme", {"README.md": "## Install\n## Use\n```python\n```\n"}),
    ("readme", {"README.md": "\n".join(f"## {s}" for s in packages.SECTIONS)}),
    ("license", {"LICENSE": ""}),
    ("experiment", {"entry_points.txt": ""}),
    ("experiment", {"entry_points.txt": "[offprints.papers]\nsick = builtins:dict\n"}),
    ("light import", {"__init__.py": "__all__ = []\nimport skimage as _skimage\n"}),
    ("method apart", {"solving.py": "def f():\n    from .reproduce import experiment\n"}),
    ("method apart", {"solving.py": "from offprints.sick import reproduce\n"}),
    ("method apart", {"solving.py": "import offprints.shared.experiment.store as store\n"}),
    (
        "method apart",
        {
            "solving.py": "from importlib import import_module as i\ni.__call__\n"
            "import importlib\nx = lambda: importlib.import_module('offprints.sick.reproduce')\n"
        },
    ),
    ("reference", {"reference.py": None}),
    ("reference", {"reference.py": "#\n" * 101}),
    ("the paper in the code", {"README.md": README}),
    ("the paper in the code", {"README.md": f"{README}## The paper in the code\nA table comes.\n"}),
    ("the paper in the code", {"README.md": f"{README}{TABLE}| Eq. 1 | `prove` |\n"}),
    ("the paper in the code", {"README.md": f"{README}{TABLE}| Eq. 1 | prove |\n"}),
    ("the paper in the code", {"README.md": f"{README}{TABLE}| Eq. 1 | `solve`, `reference.step` |\n"}),
    ("examples", {"__init__.py": "__all__ = ['solve']\ndef solve():\n    '''Solve.'''\n"}),
    ("examples", {"__init__.py": SOLVE.replace("return '1'", "return '2'")}),
    ("examples", {"__init__.py": SOLVE.replace(">>> solve()", "solve()")}),
    ("examples", {"__init__.py": SOLVE.replace("        '1'\n", "")}),
    ("examples", {"__init__.py": SOLVE.replace(">>> solve()", "\n        ".join([">>> a = 1"] * 6 + [">>> solve()"]))}),
    ("examples", {"__init__.py": SOLVE.replace(">>> solve()", ">>> unknown()")}),
]


@pytest.mark.parametrize("number", range(len(BROKEN_PACKAGES)))
def test_broken_package_is_caught(number, package) -> None:
    property_name, changes = BROKEN_PACKAGES[number]
    name = f"sick{number}"  # a module of its own: Python remembers them by name
    package(name, **{file: text and text.replace("sick", name) for file, text in changes.items()})
    skip = {} if property_name == "light import" else {"light import": "checked in one case"}
    if property_name in ("public names", "docstrings", "method apart"):
        skip["examples"] = "not what is looked at"
    with pytest.raises(AssertionError, match=f"^check_package of offprints-{name}: {property_name}: "):
        check_package(name, skip=skip)


def test_an_offprints_module_that_is_no_namespace_is_caught(package, monkeypatch) -> None:
    import offprints

    monkeypatch.setattr(offprints, "__file__", "offprints/__init__.py")
    with pytest.raises(AssertionError, match="namespace: offprints has an __init__"):
        check_package(package("spaced"))


FORMS = """
__all__ = ['Twice', 'Odd', 'LIMIT', 'TestCase']
from unittest import TestCase
LIMIT = 3
class Odd(ValueError):
    '''Raised when odd: an exception needs no example.'''
class Twice:
    '''Doubles.

    Example:
        >>> import math
        >>> torch.manual_seed(1).initial_seed(), LIMIT
        (1, 3)
        >>> Twice()(np.float64(math.pi))  # dots and spaces
        np.float64(6.28...)

    Args:
        none: There is none.
    '''
    def __call__(self, x):
        return 2 * x
    def half(self):
        '''Halve.

        Example:
            >>> Twice().half()
            1
        '''
        return 2
"""


def test_examples_of_classes_methods_and_other_names(package) -> None:
    check_package(
        package("forms", **{"__init__.py": SOLVE.replace("'1'\n    '''", "'1'\n\n    Returns:\n        One.\n    '''")})
    )
    name = package("formed", **{"__init__.py": FORMS})
    state = torch.get_rng_state()
    with pytest.raises(AssertionError, match=r"1 objects:\nTwice.half: \n(.*\n)+ *Got:\n *2"):
        check_examples(name)
    assert torch.equal(torch.get_rng_state(), state)
    package("silent", **{"__init__.py": FORMS.replace("Example:", "Note:").replace("sick", "silent")})
    with pytest.raises(AssertionError, match="1 objects:\nTwice: there is no Example: in the docstring"):
        check_examples("silent")
    check_examples("silent", skip={"Twice": "not yet: to be written"})
    check_package("silent", skip={"examples: Twice": "not yet", "the paper in the code": "no solve here"})
    with pytest.raises(ValueError, match="skip names 'Thrice'; the objects with examples are Twice"):
        check_examples("silent", skip={"Thrice": "?"})


def test_names_of_the_table_may_be_dotted_calls_and_in_full(package) -> None:
    rows = "| Eq. 1 | `reproduce.experiment` and `solve()` |\n| Alg. 2 | `offprints.dotted.reproduce.Config` |\n"
    check_package(package("dotted", **{"README.md": README + TABLE + rows}))


def test_good_package_passes(package) -> None:
    check_package(package("sound"), public=["solve"])
    with pytest.raises(AssertionError, match=r"lacks \['prove'\] and has \['solve'\] beyond the specification"):
        check_package("sound", public=["prove"])
    with pytest.raises(importlib.metadata.PackageNotFoundError):
        check_package("no-such-paper")
