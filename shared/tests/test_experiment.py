"""Experiments, their configs and claims, and what a run offers."""

from __future__ import annotations

import dataclasses
import enum
import importlib
import itertools
import json
import math
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import matplotlib as mpl
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.image import imread

from offprints.shared.experiment import Claim, Experiment, Run, UnitError
from offprints.shared.show import report
from offprints.shared.show.progress import Display, Task, duration, rate
from offprints.shared.store.configs import decode, encode
from offprints.shared.store.settings import Settings
from offprints.shared.usage import UsageError


@dataclass(frozen=True, kw_only=True)
class Config:
    steps: int = 3


def nothing(config: Any, run: Run) -> None:
    """Do nothing."""


def experiment(**changes: Any) -> Experiment:
    arguments: dict[str, Any] = {"name": "a-paper", "title": "A paper", "arxiv": "2400.00001", "config": Config}
    arguments |= {"presets": {"quick": Config()}, "function": nothing}
    return Experiment(**(arguments | changes))


@pytest.fixture
def make_run(tmp_path: Path) -> Iterator[Callable[..., Run]]:
    """A run in the test's folder; the second call resumes it."""
    runs: list[Run] = []

    def make(seed: int = 0, folder: str = "run") -> Run:
        place = tmp_path / folder
        place.mkdir(exist_ok=True)
        names = {"paper": "a-paper", "version": "0", "preset": "quick", "device": "cpu", "precision": "float32"}
        settings = Settings(**names, seed=seed, threads=1, world_size=1, config={})
        resumed = (place / "metrics.jsonl").exists()
        runs.append(Run(place, settings, module=__name__, device=torch.device("cpu"), resumed=resumed))
        return runs[-1]

    yield make
    for run in runs:
        run.close()


# Experiment


@pytest.mark.parametrize("name", ["preset", "seed", "device", "precision", "out", "resume"])
def test_reserved_fields(name: str) -> None:
    config = dataclasses.make_dataclass("Reserved", [(name, int, 0)])
    with pytest.raises(ValueError, match=f"config of a-paper has the field '{name}'.*command line"):
        experiment(config=config, presets={"quick": config()})


def test_what_an_experiment_refuses() -> None:
    assert experiment().presets == {"quick": Config()}
    unsupported = dataclasses.make_dataclass("Unsupported", [("x", Any, 0)])
    listed = dataclasses.make_dataclass("Listed", [("x", tuple[int, ...], field(default_factory=list))])
    held = dataclasses.make_dataclass("Held", [("x", float, torch.ones(1))], eq=False)
    for changes, error, word in [
        ({"name": "A paper"}, ValueError, "lower-case"),
        ({"config": dict}, TypeError, "dataclass type"),
        ({"config": Config()}, TypeError, "dataclass type"),
        ({"presets": {}}, ValueError, "empty"),
        ({"presets": {"quick": Config}}, TypeError, "quick"),
        ({"presets": {"quick": {"steps": 3}}}, TypeError, "quick"),
        ({"presets": {"../quick": Config()}}, ValueError, "one word"),
        ({"presets": {"quick": Config(steps="many")}}, TypeError, r"config\.steps must be int, got 'many'"),
        ({"config": unsupported, "presets": {"quick": unsupported()}}, TypeError, "x"),
        ({"config": listed, "presets": {"quick": listed()}}, TypeError, "does not survive"),
        ({"config": held, "presets": {"quick": held()}}, TypeError, "Tensor"),
    ]:
        with pytest.raises(error, match=word):
            experiment(**changes)


# Configs


class Color(enum.Enum):
    RED = 1
    BLUE = "b"


@dataclass(frozen=True)
class Inner:
    rate: float = 0.1
    names: list[str] = field(default_factory=lambda: ["a"])


@dataclass
class Everything:
    i: int = 3
    f: float = 2
    inf: float = math.inf
    s: str = "x"
    b: bool = True
    n: None = None
    p: Path = Path("a/b")
    color: Color = Color.BLUE
    literal: Literal["a", 1, True] = True
    maybe: float | None = None
    either: int | float | str = 1.5
    many: tuple[int, ...] = (1, 2)
    pair: tuple[int, str] = (1, "a")
    sequence: Sequence[float] = (1.0,)
    mapping: Mapping[str, tuple[int, ...]] = field(default_factory=lambda: {"a": (1,)})
    numbered: dict[int, float] = field(default_factory=lambda: {3: 0.5})
    inner: Inner = field(default_factory=Inner)
    inners: tuple[Inner, ...] = (Inner(), Inner(rate=2.0))


def test_every_kind_of_field_survives_json() -> None:
    config = Everything()
    again = decode(Everything, json.loads(json.dumps(encode(config), allow_nan=False)))
    assert again == config
    assert isinstance(again.either, float)
    assert again.literal is True
    assert experiment(config=Everything, presets={"quick": config}).presets["quick"] == config


@given(st.integers() | st.floats(allow_nan=False) | st.text() | st.none())
def test_unions_keep_the_type(value: Any) -> None:
    holder = dataclasses.make_dataclass("Holder", [("x", int | float | str | None)])
    if value not in ("nan", "inf", "-inf"):  # the words of numbers that are not finite
        again = decode(holder, json.loads(json.dumps(encode(holder(value)), allow_nan=False))).x
        assert again == value
        assert type(again) is type(value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("i", 1.5),
        ("i", True),
        ("i", None),
        ("f", "x"),
        ("f", True),
        ("s", 1),
        ("b", 1),
        ("n", 0),
        ("p", 1),
        ("color", "GREEN"),
        ("literal", 2),
        ("literal", "1"),
        ("maybe", "x"),
        ("many", 3),
        ("many", ["x"]),
        ("pair", [1]),
        ("mapping", [1]),
        ("mapping", {"a": 1}),
        ("numbered", {"x": 1.0}),
        ("inner", {"rate": 1}),
        ("inner", {"rate": 1, "names": [], "more": 1}),
        ("inner", 3),
    ],
)
def test_values_of_another_kind_are_refused_by_name(name: str, value: Any) -> None:
    content = encode(Everything())
    with pytest.raises(ValueError, match=rf"config\.{name}"):
        decode(Everything, content | {name: value})


# Claims


@pytest.mark.parametrize(
    ("measured", "relation", "threshold", "holds"),
    [
        (1.0, ">=", 1, True),
        (1.0, ">", 1, False),
        (1, "<=", 1.0, True),
        (1, "<", 1.0, False),
        (2, "==", 2, True),
        (2.0000001, "==", 2, False),
        (True, "==", 1, True),
        (math.nan, ">=", 0, False),
        (math.nan, "==", 0, False),
        (math.inf, ">", 0, False),
        (-math.inf, "<", 0, False),
        (torch.tensor([0.5]), "<", 1, True),
        (np.float32(0.5), "<", np.int64(1), True),
    ],
)
def test_claims_hold(measured: Any, relation: Any, threshold: Any, holds: bool) -> None:
    claim = Claim("id", "a statement", measured, relation, threshold)
    assert claim.holds is holds
    assert type(claim.measured) in (bool, int, float)
    json.dumps(claim.to_dict(), allow_nan=False)


def test_claims_as_json() -> None:
    claim = Claim("id", "a statement", math.nan, "<", 1, paper_value="about 1", spread=0.5)
    assert claim.to_dict() == {
        "id": "id",
        "statement": "a statement",
        "measured": "nan",
        "relation": "<",
        "threshold": 1,
        "paper_value": "about 1",
        "spread": 0.5,
        "control": None,
        "control_name": None,
        "kind": "claim",
        "holds": False,
        "control_fails": None,
    }


def test_a_claim_whose_control_clears_the_bar_does_not_hold() -> None:
    def claim(control: float) -> Claim:
        return Claim("id", "a statement", 3.0, ">=", 2.0, control=control, control_name="mechanism off")

    assert claim(1.0).holds
    assert claim(math.nan).holds
    assert not claim(2.5).holds
    assert claim(2.5).control_fails is False
    for changes in ({"control": 1.0}, {"control_name": "mechanism off"}):
        with pytest.raises(ValueError, match="control"):
            Claim("id", "a statement", 3.0, ">=", 2.0, **changes)


def test_checks_are_told_apart_from_claims(make_run: Callable[..., Run]) -> None:
    run = make_run()
    run.claim("found", "a finding", 3.0, ">=", 2.0, control=1.0, control_name="mechanism off")
    run.check("exact", "a theorem", 0.0, "==", 0.0)
    result = {"claims": [claim.to_dict() for claim in run.claims], "preset": "quick"}
    assert report.verdict(result) == "1 of 1 claims hold, 1 of 1 checks"
    assert [claim.kind for claim in run.claims] == ["claim", "check"]


@pytest.mark.parametrize(
    ("changes", "error", "word"),
    [
        ({"relation": "=>"}, ValueError, "relation"),
        ({"relation": "!="}, ValueError, "relation"),
        ({"threshold": math.nan}, ValueError, "threshold"),
        ({"threshold": None}, TypeError, "threshold"),
        ({"measured": "high"}, TypeError, "measured"),
        ({"measured": torch.ones(2)}, TypeError, r"measured.*\(2,\)"),
        ({"measured": 1j}, TypeError, "measured"),
        ({"id": ""}, ValueError, "id"),
        ({"statement": " "}, ValueError, "statement"),
        ({"paper_value": [1]}, TypeError, "paper_value"),
        ({"spread": "wide"}, TypeError, "spread"),
    ],
)
def test_claims_refuse(changes: dict[str, Any], error: type[Exception], word: str) -> None:
    arguments = {"id": "id", "statement": "a statement", "measured": 1.0, "relation": "<", "threshold": 2} | changes
    with pytest.raises(error, match=word):
        Claim(**arguments)


# The run: records


def test_ids_and_names_are_unique(make_run: Callable[..., Run]) -> None:
    run = make_run()
    run.claim("a", "a statement", 1, "<", 2)
    run.report_value("b", "a value", 1)
    run.table("t", [{"x": 1}])
    with run.figure("f"):
        pass
    for again in (
        lambda: run.claim("a", "another", 1, "<", 2),
        lambda: run.claim("b", "another", 1, "<", 2),
        lambda: run.report_value("a", "another", 1),
        lambda: run.table("t", [{"x": 1}]),
        lambda: run.figure("f").__enter__(),
    ):
        with pytest.raises(ValueError, match="already"):
            again()
    assert [claim.id for claim in run.claims] == ["a"]


def test_seeds_are_disjoint(make_run: Callable[..., Run]) -> None:
    seeds = [make_run(seed, f"run{seed}").seeds(1000) for seed in range(3)]
    assert len(set(itertools.chain(*seeds))) == 3000
    assert make_run(1, "again").seeds(5) == seeds[1][:5]
    for n in (0, 1001):
        with pytest.raises(ValueError, match="n must be in"):
            make_run(0, "n").seeds(n)


def test_log_is_strict_json(make_run: Callable[..., Run]) -> None:
    run = make_run()
    run.log(1, loss=torch.tensor(0.5), count=np.int64(3), bad=math.nan, worse=-math.inf)
    lines = (run.dir / "metrics.jsonl").read_text()
    assert lines == '{"step":1,"loss":0.5,"count":3,"bad":"nan","worse":"-inf"}\n'
    with pytest.raises(TypeError, match="loss"):
        run.log(2, loss=torch.ones(2))


def test_figures_leave_matplotlib_alone(make_run: Callable[..., Run]) -> None:
    run = make_run()
    mpl.rcParams["lines.linewidth"] = 7.5
    try:
        before = dict(mpl.rcParams)
        had_pyplot = "matplotlib.pyplot" in sys.modules
        with run.figure("curves", ncols=2, figsize=(4, 2), sharey=True) as (_, axes):
            assert axes.shape == (2,)
            (line,) = axes[0].plot([1, 2])
            assert line.get_linewidth() != 7.5
        assert dict(mpl.rcParams) == before
        assert ("matplotlib.pyplot" in sys.modules) == had_pyplot
    finally:
        mpl.rcdefaults()
    assert imread(run.dir / "figures" / "curves.png").shape == (300, 600, 4)
    assert run.figures == ["figures/curves.png"]


def test_a_figure_that_fails_is_not_saved(make_run: Callable[..., Run]) -> None:
    run = make_run()
    with pytest.raises(ZeroDivisionError), run.figure("bad"):
        _ = 1 / 0
    assert run.figures == []
    assert not (run.dir / "figures").exists()
    with pytest.raises(ValueError, match="name"), run.figure("../bad"):
        pass


def test_the_report(make_run: Callable[..., Run]) -> None:
    run = make_run()
    run.claim("a", "x | y", 0.94996, "<", 0.95, paper_value=0.9, spread=0.01)
    run.claim("b", "nan", math.nan, "<", 1)
    run.report_value("v", "a value", "words", paper_value=torch.tensor(2.0))
    run.table("methods", [{"method": "ours", "error": 0.1234567, "n": 3}, {"method": "chance", "reference": True}])
    result = {
        "preset": "quick",
        "seed": 0,
        "device": "cpu",
        "versions": {"torch": "2"},
        "wall_seconds": 1.0,
        "peak_memory_mib": 2.0,
        "claims": [claim.to_dict() for claim in run.claims],
        "values": run.values,
        "figures": ["figures/f.png"],
    }
    text = report.markdown("A paper", "2400.00001", result, {"steps": 3}, run.tables)
    assert "| x \\| y | 0.9 | 0.94996 ± 0.01 | < 0.95 | yes |" in text
    assert "| nan | – | nan | < 1 | no |" in text
    assert "| a value | 2 | words |" in text
    assert "| method | error | n |\n| --- | --- | --- |\n| ours | 0.1235 | 3 |\n| *chance* |  |  |" in text
    assert "![figures/f.png](figures/f.png)" in text
    with pytest.raises(ValueError, match="empty"):
        run.table("none", [])
    with pytest.raises(TypeError, match="error"):
        run.table("bad", [{"error": [1]}])


# The run: what is stored


@pytest.fixture
def functions(site: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """``trial/functions.py``, importable by worker processes too."""
    monkeypatch.syspath_prepend(str(site))
    return importlib.import_module("offprints.trial.functions")


def same(a: Any, b: Any) -> bool:
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    return bool(np.array_equal(a, b))


def test_units_do_not_depend_on_workers_order_or_company(make_run: Callable[..., Run], functions: Any) -> None:
    draws = {f"draw/{n}": partial(functions.draw, n) for n in range(6)}
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        alone = make_run(folder="alone").units(draws, workers=1)
        assert torch.get_num_threads() == 2
        torch.rand(3)
        backwards = make_run(folder="backwards").units(dict(reversed(draws.items())), workers=1)
    finally:
        torch.set_num_threads(threads)
    assert list(alone) == list(draws)
    for key in draws:
        assert alone[key]["threads"] == 1
        assert same(alone[key], backwards[key])
    assert not same(alone["draw/2"], make_run(seed=1, folder="seed").units(draws, workers=1)["draw/2"])

    # A second process, once it has imported what it needs, takes its share; then its results are the same ones.
    run = make_run(folder="parallel")
    run._pool.patience = 0.0
    torch.set_default_dtype(torch.float64)
    for number in range(1000):
        shares = run.units({f"{number}/{i}": partial(functions.where, i) for i in range(4)}, workers=2)
        if len({share["process"] for share in shares.values()}) == 2:
            break
    torch.set_default_dtype(torch.float32)
    assert {share["dtype"] for share in shares.values()} == {"torch.float64"}
    parallel = run.units(draws, workers=2)
    others = {result.pop("process") for result in parallel.values()} - {os.getpid()}
    assert others == {share["process"] for share in shares.values()} - {os.getpid()}
    for key, result in parallel.items():
        assert same(result, {name: value for name, value in alone[key].items() if name != "process"})

    # A unit fails there, and its process dies there: both are told with the unit's name and the cause.
    with pytest.raises(UnitError, match=r"unit 'fail/.' failed: ArithmeticError: this is another") as raised:
        run.units({f"fail/{i}": partial(functions.fail_unless, os.getpid()) for i in range(4)}, workers=2)
    assert 'raise ArithmeticError("this is another process")' in str(raised.value.__cause__)
    with pytest.raises(UnitError, match=r"unit 'die/.*' failed: its process ended with exit code 7"):
        for number in range(1000):  # until a unit runs in the second process
            run.units({f"die/{number}/{i}": partial(functions.die_unless, os.getpid()) for i in range(4)}, workers=2)


def test_the_user_limits_the_processes(make_run: Callable[..., Run], functions: Any, monkeypatch: Any) -> None:
    run = make_run()
    run._pool.patience = 0.0
    monkeypatch.setenv("OFFPRINTS_WORKERS", "1")
    shares = run.units({f"{i}": partial(functions.where, i) for i in range(4)}, workers=2)
    assert {share["process"] for share in shares.values()} == {os.getpid()}
    assert not run._pool._workers
    for wrong in ("0", "-1", "two", "1.5"):
        monkeypatch.setenv("OFFPRINTS_WORKERS", wrong)
        with pytest.raises(UsageError, match="OFFPRINTS_WORKERS"):
            run.units({"other": partial(functions.where, 0)}, workers=2)


def test_a_failing_unit_is_named_and_the_others_are_stored(make_run: Callable[..., Run], functions: Any) -> None:
    run = make_run()
    with pytest.raises(UnitError, match=r"unit 'fail/3' failed: ArithmeticError: 3 is too many") as raised:
        run.units({"fail/0": partial(functions.fail, 0), "fail/3": partial(functions.fail, 3)}, workers=1)
    assert isinstance(raised.value.__cause__, ArithmeticError)
    assert make_run().unit("fail/0", partial(functions.fail, 1)) == {"n": 0}


def test_units_are_computed_once(make_run: Callable[..., Run]) -> None:
    calls = []

    def function() -> dict[str, Any]:
        calls.append(1)
        x = torch.ones(2, requires_grad=True)
        return {"x": x, "tied": [x, x], "nan": math.nan, 3: (1, "a")}

    state = torch.get_rng_state()
    first = make_run().unit("key with / and ü", function)
    assert torch.equal(torch.get_rng_state(), state)
    second = make_run().unit("key with / and ü", function)
    assert calls == [1]
    assert not first["x"].requires_grad
    assert second["tied"][0] is second["tied"][1]
    assert first[3] == second[3] == (1, "a")
    assert math.isnan(second["nan"])


def test_units_refuse(make_run: Callable[..., Run]) -> None:
    run = make_run()
    with pytest.raises(TypeError, match=r"unit 'local' cannot be sent.*functools\.partial"):
        run.units({"local": lambda: {"a": 1}, "other": dict}, workers=2)
    with pytest.raises(ValueError, match="workers"):
        run.units({"local": dict}, workers=0)
    with pytest.raises(UnitError, match="a unit returns a dict, got int"):
        run.unit("number", lambda: 3)  # type: ignore[arg-type, return-value]
    with pytest.raises(UnitError, match=r"a\.0 is a object"):
        run.unit("object", lambda: {"a": [object()]})
    assert run.units({}) == {}
    assert not list((run.dir / "units").glob("*.json")) if (run.dir / "units").exists() else True


def test_checkpoints_bring_back_state_streams_and_log(make_run: Callable[..., Run]) -> None:
    run = make_run()
    assert run.restore() is None
    run.log(1, x=1)
    run.checkpoint(1, {"x": torch.ones(2), 7: [1, (2,)]})
    expected = (torch.rand(()), np.random.rand(), random.random())  # noqa: NPY002
    run.log(2, x=2)
    run.close()

    resumed = make_run()
    resumed.log(1, x=1)  # what comes before restore() is in the log already
    found = resumed.restore()
    assert found is not None
    step, state = found
    assert step == 1
    assert torch.equal(state["x"], torch.ones(2))
    assert state[7] == [1, (2,)]
    assert (torch.rand(()), np.random.rand(), random.random()) == expected  # noqa: NPY002
    resumed.log(2, x=3)
    assert (run.dir / "metrics.jsonl").read_text() == '{"step":1,"x":1}\n{"step":2,"x":3}\n'


def test_the_log_starts_anew_without_a_checkpoint(make_run: Callable[..., Run]) -> None:
    run = make_run()
    run.log(1, x=1)
    run.close()
    make_run().log(1, x=1)
    assert (run.dir / "metrics.jsonl").read_text() == '{"step":1,"x":1}\n'


# Progress


def test_progress_yields_everything_and_tells_now_and_then(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = itertools.count(0, 4)
    monkeypatch.setattr(time, "monotonic", lambda: float(next(clock)))
    display = Display(visible=True)
    assert list(display.track(iter(range(6)), 6, "training")) == list(range(6))
    assert list(display.track([], None, "nothing")) == []
    lines = capsys.readouterr().err.splitlines()
    assert 1 < len(lines) < 6
    assert lines[0].startswith("training 3/6 (")
    assert lines[0].endswith(" left)")
    assert lines[-1].startswith("nothing 0")


def test_progress_is_silent_elsewhere(capsys: pytest.CaptureFixture[str]) -> None:
    display = Display(visible=False)
    assert list(display.track(range(3), None, "x")) == [0, 1, 2]
    Task(display, "units", 3, done=1).advance("unit")
    assert capsys.readouterr() == ("", "")


def test_progress_on_a_terminal() -> None:
    pty = pytest.importorskip("pty")
    script = (
        "from offprints.shared.show.progress import Display, Task\n"
        "display = Display(visible=True)\n"
        "task = Task(display, 'units', 4, done=1)\n"
        "for i in display.track(range(100), None, 'training'): pass\n"
        "task.advance('method/seed0')\n"
        "display.line('a line')\n"
        "task.finish()\n"
    )
    ours, theirs = pty.openpty()
    environment = os.environ | {"TERM": "xterm", "COLUMNS": "120"}
    process = subprocess.Popen([sys.executable, "-c", script], stderr=theirs, env=environment)
    os.close(theirs)
    shown = b""
    with os.fdopen(ours, "rb", buffering=0) as terminal:
        while True:
            try:
                part = terminal.read(4096)
            except OSError:  # Linux says so at the end
                break
            if not part:
                break
            shown += part
    assert process.wait() == 0
    text = shown.decode()
    for word in ("units", "training", "a line", "━"):
        assert word in text


def test_words_for_numbers() -> None:
    assert [duration(s) for s in (0.04, 9.99, 12.3, 200, 7500)] == [
        "0.0 s",
        "10.0 s",
        "12 s",
        "3 min 20 s",
        "2 h 05 min",
    ]
    assert [rate(10, 5), rate(1, 4), rate(0, 4)] == ["2/s", "4 s each", ""]
    assert report.shown(0.95000001, apart_from=0.95) == "0.95000001"
    assert [report.shown(x) for x in (None, True, 3, 0.123456, "a")] == ["–", "yes", "3", "0.1235", "a"]
