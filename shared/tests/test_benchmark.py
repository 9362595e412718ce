"""`compare` times contenders in turns, checks that they agree, prints and writes what it found."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
import time
from importlib.metadata import version
from io import StringIO
from itertools import groupby
from pathlib import Path

import pytest
import torch
from rich.console import Console

from offprints.shared.benchmark import Case, compare, machine


def quiet() -> Console:
    return Console(file=StringIO(), width=120)


def test_compare_prints_and_writes(tmp_path) -> None:
    console, output = quiet(), tmp_path / "results" / "sum.json"
    x = torch.ones(100)
    case = Case("sum of 100", ours=x.sum, peers={"torch": lambda: x.cumsum(0)[-1], "loop": lambda: sum(x.tolist())})
    timings = compare([case, Case("alone", ours=x.sum)], output, rounds=3, seconds=1e-4, console=console)

    assert [t.name for t in timings["sum of 100"]] == ["ours", "torch", "loop"]
    for t in timings["sum of 100"]:
        assert 0 < t.lower <= t.median <= t.upper
        assert t.calls >= 3
    ours, peer, loop = timings["sum of 100"]
    assert (ours.ratio, peer.ratio) == (1.0, peer.median / ours.median)
    assert (ours.version, peer.version, loop.version) == (None, version("torch"), None)

    text = console.file.getvalue()
    assert f"torch {version('torch')}" in text
    assert f"{loop.ratio:.2f}" in text

    record = json.loads(output.read_text())
    assert record["benchmark"] == "sum"
    assert record["machine"] == machine()
    assert (record["threads"], record["rounds"]) == (torch.get_num_threads(), 3)
    assert [case["case"] for case in record["cases"]] == ["sum of 100", "alone"]
    assert record["cases"][0]["timings"][1]["median"] == peer.median
    assert list(output.parent.iterdir()) == [output]


def test_contenders_take_turns() -> None:
    order: list[str] = []
    case = Case("turns", ours=lambda: order.append("ours"), peers={"a": lambda: order.append("a")})
    compare([case], rounds=4, seconds=1e-9, console=quiet())
    # Warm-up, calibration, then ours, a, a, ours, ours, a, a, ours.
    assert [name for name, _ in groupby(order)] == ["ours", "a"] * 4 + ["ours"]


def test_a_measurement_lasts_as_asked() -> None:
    case = Case("sleep", ours=lambda: time.sleep(1e-3))
    (timing,) = compare([case], rounds=1, seconds=0.02, console=quiet())["sleep"]
    assert timing.calls > 1
    assert timing.lower == timing.median == timing.upper


def test_another_clock_counts(tmp_path) -> None:
    ticks = itertools.count()

    def tick() -> float:
        return float(next(ticks))

    output = tmp_path / "ticks.json"
    (timing,) = compare([Case("tick", ours=int)], output, rounds=2, seconds=1.0, clock=tick, console=quiet())["tick"]
    assert (timing.median, timing.calls) == (1.0, 2)
    assert json.loads(output.read_text())["clock"] == "tick"


def test_disagreement_is_an_error_before_anything_is_timed() -> None:
    def agree(a: float, b: float) -> None:
        assert a == b, f"{a} against {b}"

    calls: list[int] = []
    case = Case("work", ours=lambda: 1, peers={"b": lambda: calls.append(0) or 2}, agree=agree)
    with pytest.raises(AssertionError, match="1 against 2"):
        compare([case], console=quiet())
    assert len(calls) == 1


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ({"cases": []}, "distinct names"),
        ({"cases": [Case("a", ours=int), Case("a", ours=int)]}, "distinct names"),
        ({"cases": [Case("a", ours=int, peers={"ours": int})]}, "is called 'ours'"),
        ({"cases": [Case("a", ours=int)], "rounds": 0}, "rounds"),
        ({"cases": [Case("a", ours=int)], "seconds": 0.0}, "seconds"),
        ({"cases": [Case("a", ours=int)], "threads": 0}, "threads"),
    ],
)
def test_errors(arguments, word) -> None:
    with pytest.raises(ValueError, match=word):
        compare(console=quiet(), **arguments)


def test_the_benchmark_of_starts_answers_help_and_refuses() -> None:
    script = Path(__file__).parents[1] / "benchmarks" / "bench_start.py"
    ask = [sys.executable, str(script)]
    helped = subprocess.run([*ask, "--help"], check=True, capture_output=True, text=True).stdout
    assert "--rounds" in helped
    assert "default 3" in helped
    for wrong, word in (
        (("--rounds", "0"), "must be at least 1"),
        (("--only", "no-such-paper"), "not installed: no-such-paper"),
    ):
        answer = subprocess.run([*ask, *wrong], check=False, capture_output=True, text=True)
        assert answer.returncode != 0
        assert word in answer.stderr
