"""Real processes: what several have seen is what one would have; a killed, a late and a lying one harm nobody."""

from __future__ import annotations

import multiprocessing
import os
import signal
import tempfile
import time
from datetime import timedelta
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from offprints.aef_ocl import AEFOCLClassifier, PseudoFeatureGenerator, RecursiveRidge
from offprints.shared.testing.processes import fresh_process

torch.manual_seed(0)
CODES = torch.tensor([0, 0, 0, 1, 1, 2]).repeat(10)
X, Y = torch.randn(60, 4).double() + CODES[:, None], torch.tensor([7, -2, 40])[CODES]


def learned(model: AEFOCLClassifier) -> list[Any]:
    return [model.classes_, model.ridge_.weight, model.decision_function(X), model.generator_.count_]


def make(**options: Any) -> AEFOCLClassifier:
    return AEFOCLClassifier(**{"buffer_size": 20, "gamma": 0.1, "device": "cpu"} | options)


def refused(call: Any) -> str:
    try:
        call()
    except (TypeError, ValueError) as error:
        return str(error)
    return "nothing"


def machine(rank: int) -> dict[str, Any]:
    """One of two: neither has seen all classes, and in the second round the first has seen nothing."""
    found: dict[str, Any] = {}
    mine = (Y != 40) if rank == 0 else (Y == 40)
    for solver in ("cholesky", "recursive"):
        model = make(solver=solver).partial_fit(X[mine], Y[mine]).all_reduce_()
        found[f"classes {solver}"] = learned(model)
        model.partial_fit(X[:5], Y[:5])
        found[f"then {solver}"] = model.ridge_.n_samples_seen_
    late = make(random_state=None)
    if rank == 1:
        late.partial_fit(X, Y)
    found["late"] = learned(late.all_reduce_())
    found["none"] = hasattr(make().all_reduce_(), "classes_")
    found["buffers"] = refused(make(random_state=rank).partial_fit(X, Y).all_reduce_)
    found["gamma"] = refused(make(gamma=0.1 + rank).partial_fit(X, Y).all_reduce_)
    found["labels"] = refused(make().partial_fit(X, Y if rank else Y.numpy().astype(str)).all_reduce_)
    unseen = make(buffer_size=0) if rank else make().partial_fit(X, Y)
    found["unseen"] = refused(unseen.all_reduce_)
    ridge = RecursiveRidge(4, gamma=0.5).partial_fit(X[mine], CODES[mine]).all_reduce_()
    found["ridge"] = [ridge.weight, ridge.n_samples_seen_]
    found["ridges"] = refused(RecursiveRidge(4 + rank).all_reduce_)
    moments = PseudoFeatureGenerator(4)
    if rank == 1:
        moments.partial_fit(X, CODES)
    moments.all_reduce_()
    found["moments"] = [moments.count_, moments.mean_, moments.std_]
    found["generators"] = refused(PseudoFeatureGenerator(4 + rank).all_reduce_)
    return found


def close(ours: list[Any], theirs: list[Any]) -> None:
    for got, expected in zip(ours, theirs, strict=True):
        if isinstance(got, Tensor) and got.is_floating_point():
            torch.testing.assert_close(got, expected, rtol=1e-8, atol=1e-9)
        else:
            assert (torch.as_tensor(got) == torch.as_tensor(expected)).all()


def test_two_processes(two_processes) -> None:
    whole = make().fit(X, Y)
    ridge = RecursiveRidge(4, gamma=0.5).partial_fit(X, CODES)
    moments = PseudoFeatureGenerator(4).partial_fit(X, CODES)
    for found in two_processes(machine):
        for solver in ("cholesky", "recursive"):
            close(found[f"classes {solver}"], learned(whole))
            assert found[f"then {solver}"] == 65
        assert found["late"][0].tolist() == [-2, 7, 40]
        assert found["late"][3].tolist() == [20, 30, 10]
        assert found["none"] is False
        for name, word in (
            ("buffers", "buffer"),
            ("gamma", "gamma"),
            ("labels", "labels"),
            ("unseen", "buffer_size"),
            ("ridges", "in_features"),
            ("generators", "in_features"),
        ):
            assert word in found[name], name
        close(found["ridge"], [ridge.weight, 60])
        close(found["moments"], [moments.count_, moments.mean_, moments.std_])


def test_merging_files(tmp_path) -> None:
    """Three machines write what they have learned; a fourth adds it up."""
    for number, rows in enumerate(torch.arange(60).tensor_split(3)):
        torch.save(make().fit(X[rows], Y[rows]).state_dict(), tmp_path / f"{number}.pt")
    total = make()
    for number in range(3):
        total.merge_(AEFOCLClassifier().load_state_dict(torch.load(tmp_path / f"{number}.pt", weights_only=True)))
    close(learned(total), learned(make().fit(X, Y)))


# One of three processes misbehaves


def killed_at_collective(number: int) -> None:
    """End this process, as the operating system would, when it enters its ``number``-th collective."""
    entered = 0

    def dying(collective: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal entered
            entered += 1
            if entered == number:
                os.kill(os.getpid(), signal.SIGKILL)
            return collective(*args, **kwargs)

        return call

    for name in ("all_gather_object", "all_reduce"):
        setattr(dist, name, dying(getattr(dist, name)))


def one_of_three(rank: int, folder: str, fault: Any, answers: Any) -> None:
    """Sees a class of its own; the last one is killed, late, or lies."""
    torch.set_num_threads(1)
    store = dist.FileStore(f"{folder}/rendezvous", 3)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=3, timeout=timedelta(seconds=30))
    mine = rank == CODES
    model = make().partial_fit(X[mine], Y[mine])
    before = learned(model)
    if rank == 2 and isinstance(fault, int):
        killed_at_collective(fault)
    if rank == 2 and fault == "late":
        time.sleep(0.5)
    if rank == 2 and fault == "NaN":
        model.ridge_._matrix.fill_(float("nan"))
    if rank == 2 and fault == "matrix":
        model.buffer_.weight[0, 0] += 1e-15
    if rank == 2 and fault == "rows twice":
        model.ridge_.partial_fit(model.buffer_(X[mine]), torch.zeros(10, dtype=torch.int64))
    try:
        model.all_reduce_()
        error = ""
    except (ValueError, RuntimeError) as raised:
        error = f"{type(raised).__name__}: {raised}"
    same = all(torch.equal(torch.as_tensor(a), torch.as_tensor(b)) for a, b in zip(before, learned(model), strict=True))
    after = [] if rank == 2 and fault != "late" else learned(model.partial_fit(X, Y))
    answers.put((rank, error, same, [torch.as_tensor(value).numpy() for value in after]))
    answers.close()
    answers.join_thread()
    os._exit(0)


def three(fault: Any) -> dict[int, Any]:
    context = multiprocessing.get_context("fork")  # of a process that has one thread
    answers = context.Queue()
    with tempfile.TemporaryDirectory() as folder:
        processes = [context.Process(target=one_of_three, args=(rank, folder, fault, answers)) for rank in range(3)]
        for process in processes:
            process.start()
        found = [answers.get(timeout=60) for _ in range(2 if isinstance(fault, int) else 3)]
        for process in processes:
            process.join(60)
    return {rank: (error, same, [torch.from_numpy(value) for value in after]) for rank, error, same, after in found}


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="processes are forked")
def test_a_killed_process() -> None:
    """Wherever it ends, the others keep what they had, and go on."""
    faults = (1, 2, 4, 8, 11)
    answers = fresh_process(lambda: [three(number) for number in faults])
    for fault, found in zip(faults, answers, strict=True):
        assert sorted(found) == [0, 1], fault
        for rank, (error, same, after) in found.items():
            assert error.startswith("RuntimeError"), (fault, rank, error)
            assert same, (fault, rank)
            mine = rank == CODES
            close(after, learned(make().partial_fit(X[mine], Y[mine]).partial_fit(X, Y)))


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="processes are forked")
def test_a_late_and_a_lying_process() -> None:
    late, *lies = fresh_process(lambda: [three(fault) for fault in ("late", "NaN", "matrix", "rows twice")])
    whole = make().fit(X, Y).partial_fit(X, Y)
    for error, _, after in late.values():
        assert error == ""
        close(after, learned(whole))
    for found, word in zip(lies, ("finite", "buffer", "same samples"), strict=True):
        for rank in (0, 1, 2):
            error, same, _ = found[rank]
            assert error.startswith("ValueError"), (word, rank)
            assert "process 2" in error, (word, rank)
            assert word in error, (word, rank)
            assert same or rank == 2, (word, rank)
    liar = make().fit(X, Y)
    liar.generator_.mean_[0] = torch.inf
    model = make().fit(X, Y)
    scores = model.decision_function(X)
    with pytest.raises(ValueError, match="PseudoFeatureGenerator must be finite"):
        model.merge_(liar)
    assert torch.equal(model.decision_function(X), scores)
