"""Real processes: what several have seen is what one would have; whoever cannot take part is told on all."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from offprints.aef_ocl import AEFOCLClassifier, PseudoFeatureGenerator, RecursiveRidge

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
