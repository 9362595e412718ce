"""The ball: identities, limits, special points, every path, and geoopt as an oracle."""

from __future__ import annotations

import math
import warnings
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck, gradgradcheck

from offprints.hyp_oc import (
    clip_features,
    conformal_factor,
    distance,
    distance0,
    expmap,
    expmap0,
    gyroplane_logits,
    logmap,
    logmap0,
    mobius_add,
    pairwise_distance,
    project,
)
from offprints.shared.testing import check_arguments, check_errors


def draw(*shape: int, seed: int = 0, scale: float = 1.0) -> torch.Tensor:
    return scale * torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def points(*shape: int, c: float, seed: int = 0) -> torch.Tensor:
    return expmap0(draw(*shape, seed=seed), c=c)


cases = given(seed=st.integers(0, 10_000), log_c=st.floats(-4, 1.5), d=st.integers(1, 9))


@settings(max_examples=15)
@cases
def test_identities(seed: int, log_c: float, d: int) -> None:
    c = 10.0**log_c
    x, y, z = (project(expmap0(draw(5, d, seed=seed + i, scale=c**-0.5), c=c), c=c) for i in range(3))
    u = draw(5, d, seed=seed + 3, scale=0.3 * c**-0.5)
    close = partial(torch.testing.assert_close, rtol=1e-7, atol=1e-7 * c**-0.5)
    close(mobius_add(-x, mobius_add(x, y, c=c), c=c), y)
    close(mobius_add(x, torch.zeros_like(x), c=c), x)
    close(mobius_add(x, -x, c=c), torch.zeros_like(x))
    xy, yz, xz = distance(x, y, c=c), distance(y, z, c=c), distance(x, z, c=c)
    close(xy, distance(y, x, c=c))
    assert (xz <= xy + yz + 1e-9 * c**-0.5).all()
    close(distance0(x, c=c), distance(torch.zeros_like(x), x, c=c))
    close(distance0(expmap0(u, c=c), c=c), 2 * u.norm(dim=-1))
    close(logmap0(expmap0(u, c=c), c=c), u)
    x = 0.9 * x
    local = u / conformal_factor(x, c=c)[:, None]
    close(logmap(x, expmap(x, local, c=c), c=c), local)
    close(distance(x, expmap(x, local, c=c), c=c), u.norm(dim=-1))
    rotation = torch.linalg.qr(draw(d, d, seed=seed + 9))[0]
    close(distance(x @ rotation, y @ rotation, c=c), distance(x, y, c=c))
    projected = project(3 * x, c=c)
    assert (projected.norm(dim=-1) < c**-0.5).all()
    assert torch.equal(project(projected, c=c), projected)
    assert torch.equal(project(projected.float(), c=c), projected.float())


def test_flat_limit() -> None:
    x, y = draw(4, 3), draw(4, 3, seed=1)
    c = 1e-10
    torch.testing.assert_close(mobius_add(x, y, c=c), x + y, rtol=1e-7, atol=1e-8)
    torch.testing.assert_close(distance(x, y, c=c), 2 * (x - y).norm(dim=-1), rtol=1e-8, atol=0)
    torch.testing.assert_close(expmap(x, y, c=c), x + y, rtol=1e-7, atol=1e-8)
    normals = draw(2, 3, seed=2)
    expected = 4 * torch.einsum("bkd,kd->bk", x[:, None] - y[:2], normals)
    torch.testing.assert_close(gyroplane_logits(x, y[:2], normals, c=c), expected, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("c", [0.1, 1.0])
def test_geoopt(c: float) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch.jit.script, which it is built on
        math_of = pytest.importorskip("geoopt.manifolds.stereographic.math")
        k = torch.tensor(-c, dtype=torch.float64)
        x, y, p, a = (points(6, 4, c=c, seed=i) for i in range(4))
        u = draw(6, 4, seed=5)
        oracle = {
            "add": (mobius_add(x, y, c=c), math_of.mobius_add(x, y, k=k)),
            "distance": (distance(x, y, c=c), math_of.dist(x, y, k=k)),
            "exp": (expmap(x, u, c=c), math_of.expmap(x, u, k=k)),
            "log": (logmap(x, y, c=c), math_of.logmap(x, y, k=k)),
            "lambda": (conformal_factor(x, c=c), math_of.lambda_x(x, k=k)),
            "plane": (
                gyroplane_logits(x, p, a, c=c),
                math_of.dist2plane(x[:, None], p, a, k=k, signed=True, scaled=True),
            ),
        }
    for name, (found, expected) in oracle.items():
        if name == "plane":  # its normals are not multiplied by the conformal factor
            expected = expected * conformal_factor(p, c=c)
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9, msg=lambda m, name=name: f"{name}: {m}")


def test_gyroplanes() -> None:
    """A point on the plane has logit 0, the sign follows the normal, a normal of length 0 gives 0 and no NaN."""
    c = 0.7
    p, a, x = points(3, 4, c=c), draw(3, 4, seed=1), points(5, 4, c=c, seed=2)
    logits = gyroplane_logits(x, p, a, c=c)
    assert logits.shape == (5, 3)
    torch.testing.assert_close(gyroplane_logits(x, p, -a, c=c), -logits)
    torch.testing.assert_close(gyroplane_logits(p, p, a, c=c).diagonal(), torch.zeros(3, dtype=torch.float64))
    along = draw(3, 4, seed=3)
    along = along - (along * a).sum(1, keepdim=True) / a.square().sum(1, keepdim=True) * a
    on_planes = expmap(p, along / conformal_factor(p, c=c)[:, None], c=c)
    torch.testing.assert_close(
        gyroplane_logits(on_planes, p, a, c=c).diagonal(), torch.zeros(3, dtype=torch.float64), atol=1e-9, rtol=0
    )
    none = torch.zeros(3, 4, dtype=torch.float64, requires_grad=True)
    flat = gyroplane_logits(x, p, none, c=c)
    assert (flat == 0).all()
    flat.sum().backward()
    assert none.grad.isfinite().all()
    assert gyroplane_logits(x[None], p, a, c=c).shape == (1, 5, 3)
    assert gyroplane_logits(x[0], p, a, c=c).shape == (3,)


def test_float32_next_to_the_boundary() -> None:
    """Float32 in, float32 out, and the digits of float64 between: also on the far side, where log(x + sqrt) clamps."""
    c = 0.1
    shell = torch.nn.functional.normalize(torch.randn(20, 6, generator=torch.Generator().manual_seed(0)), dim=1)
    for margin in (1e-3, 1e-5):
        x = shell * (1 - margin) / c**0.5
        p, a = x[:3] * 0.5, shell[3:6]
        for function in (partial(distance, x, x.flip(0), c=c), partial(gyroplane_logits, x, p, a, c=c)):
            args = [t.double() if isinstance(t, torch.Tensor) else t for t in function.args]
            torch.testing.assert_close(function().double(), function.func(*args, c=c), rtol=2e-7, atol=1e-6)
    far = gyroplane_logits(-x[:1], x[:1] * 0.5, shell[:1], c=c)
    near = gyroplane_logits(-x[:1].double(), x[:1].double() * 0.5, shell[:1].double(), c=c)
    assert float(far) < -60
    torch.testing.assert_close(far.double(), near, rtol=1e-6, atol=0)


def test_near_and_tiny_differences() -> None:
    """No floor under distances: two points a float32 ulp apart, and tangent vectors whose squares underflow."""
    x = torch.tensor([0.5, 0.25])
    y = torch.nextafter(x, torch.ones(2))
    expected = conformal_factor(x.double(), c=1.0) * (y.double() - x.double()).norm()
    torch.testing.assert_close(distance(x, y, c=1.0).double(), expected, rtol=1e-5, atol=0)
    torch.testing.assert_close(pairwise_distance(x[None], y[None], c=1.0)[0, 0], distance(x, y, c=1.0))
    tiny = torch.full((3,), 1e-30)
    torch.testing.assert_close(expmap0(tiny, c=1.0), tiny)
    torch.testing.assert_close(distance0(tiny, c=1.0), 2 * tiny[0] * 3**0.5)


def test_huge() -> None:
    """The direction alone counts far out, in both types: no overflow turns it into 0."""
    for dtype, size in ((torch.float32, 1e37), (torch.float64, 1e200)):
        u = torch.tensor([3.0, 4.0], dtype=dtype) * size
        torch.testing.assert_close(expmap0(u, c=4.0), torch.tensor([0.3, 0.4], dtype=dtype))
        torch.testing.assert_close(clip_features(u), torch.tensor([1.2, 1.6], dtype=dtype))
        torch.testing.assert_close(project(u, c=4.0, eps=0.5), torch.tensor([0.15, 0.2], dtype=dtype))


SPECIAL = {
    "ordinary": (0.3, 0.2),
    "zero": (0.0, 0.2),
    "both zero": (0.0, 0.0),
    "near the seam": (1e-3**0.5 / 2, 0.1),
}


@pytest.mark.parametrize("kind", SPECIAL)
def test_gradients(kind: str) -> None:
    """First and second derivatives against finite differences, and at zero vectors their known values."""
    one, two = SPECIAL[kind]
    x = (torch.tensor([[1.0, -0.5, 0.5]], dtype=torch.float64) * one).requires_grad_()
    y = (torch.tensor([[0.2, 1.0, -0.4]], dtype=torch.float64) * two).requires_grad_()
    for function in (expmap0, logmap0, partial(project), conformal_factor):
        assert gradcheck(partial(function, c=1.3), (x,))
        assert gradgradcheck(partial(function, c=1.3), (x,))
    for function in (expmap, logmap, mobius_add):
        assert gradcheck(partial(function, c=1.3), (x, y))
        assert gradgradcheck(partial(function, c=1.3), (x, y))
    assert gradcheck(clip_features, (x,))
    assert gradcheck(lambda x, y: gyroplane_logits(x, y, y.flip(1) + 0.1, c=1.3), (x, y))
    assert gradgradcheck(lambda x, y: gyroplane_logits(x, y, y.flip(1) + 0.1, c=1.3), (x, y))
    for function in (expmap0, logmap0):
        jacobian = torch.autograd.functional.jacobian(partial(function, c=1.3), torch.zeros(3, dtype=torch.float64))
        assert torch.equal(jacobian, torch.eye(3, dtype=torch.float64))


def test_gradients_at_coincident_points() -> None:
    x = torch.tensor([[0.1, 0.2], [0.0, 0.0]], dtype=torch.float64, requires_grad=True)
    for function in (lambda x: distance(x, x.clone(), c=1.0), partial(distance0, c=1.0)):
        (gradient,) = torch.autograd.grad(function(x).sum(), x)
        assert torch.equal(gradient[1], torch.zeros(2, dtype=torch.float64))
        assert gradient.isfinite().all()
    whole = pairwise_distance(x, x, c=1.0)
    assert torch.equal(whole.diagonal(), torch.zeros(2, dtype=torch.float64))
    (gradient,) = torch.autograd.grad(whole.sum(), x, create_graph=True)
    expected = torch.autograd.grad(2 * distance(x[:1], x[1:], c=1.0).sum(), x)[0]
    torch.testing.assert_close(gradient.detach(), expected)
    assert torch.autograd.grad(gradient.sum(), x)[0].isfinite().all()


def collapsed() -> dict[str, torch.Tensor]:
    x = points(30, 5, c=0.3)
    return {
        "spread": x,
        "collapsed": x[:1] + 1e-7 * x,
        "two clusters": torch.cat([x[:1] + 1e-6 * x[:15], -x[:1] + 1e-6 * x[15:]]),
        "one next to the boundary": torch.cat([x[:-1], project(100 * x[-1:], c=0.3)]),
        "all the same": x[:1].expand(30, 5),
    }


@pytest.mark.parametrize("kind", collapsed())
def test_all_pairs(kind: str) -> None:
    """As pair by pair, values and gradients, also where inner products have no digits left."""
    x = collapsed()[kind].clone().requires_grad_()
    y = torch.cat([x.detach()[:7], points(4, 5, c=0.3, seed=1)])
    weight = draw(30, 11, seed=5)
    expected = distance(x[:, None], y, c=0.3)
    found = pairwise_distance(x, y, c=0.3)
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-15)
    for result in (found, expected):
        (result * weight).sum().backward(retain_graph=True)
    both = torch.autograd.grad((found * weight).sum(), x)[0], torch.autograd.grad((expected * weight).sum(), x)[0]
    torch.testing.assert_close(*both, rtol=1e-6, atol=1e-8)
    single = pairwise_distance(x.detach().float(), y.float(), c=0.3)
    exact = distance(x.detach().float().double()[:, None], y.float().double(), c=0.3)
    torch.testing.assert_close(single.double(), exact, rtol=1e-6, atol=1e-12)


def test_all_pairs_shapes() -> None:
    assert pairwise_distance(torch.zeros(0, 3), torch.zeros(4, 3), c=1.0).shape == (0, 4)
    assert pairwise_distance(torch.zeros(2, 3), torch.zeros(0, 3), c=1.0).shape == (2, 0)
    x = points(3, 4, 2, c=1.0)
    mapped = torch.func.vmap(partial(pairwise_distance, c=1.0))(x, x.flip(0))
    for i in range(3):
        torch.testing.assert_close(mapped[i], pairwise_distance(x[i], x.flip(0)[i], c=1.0))


FUNCTIONS = {
    "expmap0": lambda x, y: expmap0(x, c=0.5),
    "logmap0": lambda x, y: logmap0(x, c=0.5),
    "expmap": lambda x, y: expmap(x, y, c=0.5),
    "logmap": lambda x, y: logmap(x, y, c=0.5),
    "mobius_add": lambda x, y: mobius_add(x, y, c=0.5),
    "project": lambda x, y: project(2 * x, c=0.5),
    "clip_features": lambda x, y: clip_features(x, max_norm=0.4),
    "conformal_factor": lambda x, y: conformal_factor(x, c=0.5),
    "distance": lambda x, y: distance(x, y, c=0.5),
    "distance0": lambda x, y: distance0(x, c=0.5),
    "gyroplane_logits": lambda x, y: gyroplane_logits(x, y, y + 0.1, c=0.5),
}


def special_points() -> tuple[torch.Tensor, torch.Tensor]:
    """Ordinary rows, a zero row, and a row that is the same in both."""
    x, y = points(4, 3, c=0.5), points(4, 3, c=0.5, seed=1)
    x[1], y[2] = 0, x[2]
    return x, y


@pytest.mark.parametrize("name", FUNCTIONS)
def test_paths(name: str) -> None:
    """Compiled, mapped, forward mode, strided, read-only, under autocast, in half types: one value, one gradient."""
    function, (x, y) = FUNCTIONS[name], special_points()

    def gradient(f, *tensors):
        leaves = [t.clone().requires_grad_() for t in tensors]
        value = f(*leaves)
        used = torch.autograd.grad(value.sum(), leaves, allow_unused=True)
        return [value.detach(), *(g for g in used if g is not None)]

    expected = gradient(function, x, y)
    assert all(t.isfinite().all() for t in expected)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the compiler itself
        compiled = gradient(torch.compile(function, backend="aot_eager", dynamic=False), x, y)
    for found, wanted in zip(compiled, expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-12)
    strided = [torch.stack([t, t], -1)[..., 0] for t in (x, y)]
    torch.testing.assert_close(function(*strided), expected[0], rtol=1e-13, atol=1e-15)
    if name != "gyroplane_logits":
        torch.testing.assert_close(torch.func.vmap(function)(x, y), expected[0], rtol=1e-12, atol=1e-15)
    by_func = torch.func.grad(lambda x: function(x, y).sum())(x)
    torch.testing.assert_close(by_func, expected[1], rtol=1e-10, atol=1e-12)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch.jit.script, with which torch writes its forward mode
        _, tangent = torch.func.jvp(lambda x: function(x, y), (x,), (torch.ones_like(x),))
    torch.testing.assert_close(tangent.sum(), expected[1].sum(), rtol=1e-9, atol=1e-10)
    with torch.autocast("cpu", torch.bfloat16):
        low = function(x.float(), y.float())
    assert torch.equal(low, function(x.float(), y.float()))
    for half in (torch.bfloat16, torch.float16):
        rounded = x.to(half), y.to(half)
        result = function(*rounded)
        assert result.dtype == torch.float32
        assert result.isfinite().all()


def test_half_types_stay_in_the_ball() -> None:
    """In bfloat16 the last numbers below the boundary are a percent away from it."""
    x = project(torch.randn(50, 8, generator=torch.Generator().manual_seed(0)).bfloat16() * 10, c=1.0)
    assert (x.norm(dim=1) < 1).all()
    assert distance(x[:25], x[25:], c=1.0).isfinite().all()


def test_broadcasting_and_empty() -> None:
    x, y = points(5, 3, c=1.0), points(2, 1, 3, c=1.0, seed=1)
    assert distance(x, y, c=1.0).shape == (2, 5)
    assert expmap(x[0], y, c=1.0).shape == (2, 1, 3)
    assert distance(x[:0], x[:0], c=1.0).shape == (0,)
    assert expmap0(x[:0], c=1.0).shape == (0, 3)
    assert gyroplane_logits(x[:0], x[:2], x[:2], c=1.0).shape == (0, 2)


def two(generator: torch.Generator) -> dict[str, object]:
    x, y = torch.rand(2, 7, 3, generator=generator) / 2
    return {"x": x, "y": y, "c": 0.5}


def test_arguments() -> None:
    for function in (distance, logmap, mobius_add, pairwise_distance):
        check_arguments(function, two, nan="propagate", skip={"c: huge": "the points are then outside the ball"})
    check_arguments(
        expmap,
        lambda g: {"x": two(g)["x"], "u": two(g)["y"], "c": 0.5},
        nan="propagate",
        skip={"c: huge": "the points are then outside the ball"},
    )
    for function, name in ((logmap0, "x"), (distance0, "x"), (conformal_factor, "x"), (expmap0, "u")):
        check_arguments(
            function,
            lambda g, name=name: {name: two(g)["x"], "c": 0.5},
            nan="propagate",
            skip={"c: huge": "the points are then outside the ball"},
        )
    check_arguments(project, lambda g: {"x": two(g)["x"], "c": 0.5}, nan="propagate")
    check_arguments(clip_features, lambda g: {"x": two(g)["x"]}, nan="propagate")
    check_arguments(
        gyroplane_logits,
        lambda g: {"x": two(g)["x"], "points": two(g)["y"][:2], "normals": two(g)["y"][:2] + 0.1, "c": 0.5},
        nan="propagate",
        skip={"c: huge": "the points are then outside the ball"},
    )


def test_bad_inputs() -> None:
    x, wide = torch.zeros(2, 3), torch.zeros(2, 4)
    whole = torch.zeros(2, 3, dtype=torch.int64)
    cases = []
    for c in (0.0, -1.0, math.nan, math.inf):
        cases += [
            (lambda c=c: expmap0(x, c=c), ValueError, "c must be"),
            (lambda c=c: distance(x, x, c=c), ValueError, "c must be"),
            (lambda c=c: pairwise_distance(x, x, c=c), ValueError, "c must be"),
            (lambda c=c: gyroplane_logits(x, x, x, c=c), ValueError, "c must be"),
        ]
    for function in (distance, logmap, expmap, mobius_add, pairwise_distance):
        cases += [
            (lambda f=function: f(x, wide, c=1.0), ValueError, "width"),
            (lambda f=function: f(whole, x, c=1.0), TypeError, "x"),
            (lambda f=function: f([[0.0]], x, c=1.0), TypeError, "x"),
        ]
    for function in (expmap0, logmap0, project, distance0, conformal_factor):
        cases += [
            (lambda f=function: f(whole, c=1.0), TypeError, "floating"),
            (lambda f=function: f(None, c=1.0), TypeError, "Tensor"),
            (lambda f=function: f(torch.zeros(3, 0), c=1.0), ValueError, "coordinate"),
        ]
    cases += [
        (lambda: distance(x, torch.zeros(3, 3), c=1.0), ValueError, "broadcast"),
        (lambda: clip_features(x, max_norm=0.0), ValueError, "max_norm"),
        (lambda: clip_features(whole), TypeError, "x"),
        (lambda: project(x, c=1.0, eps=0.0), ValueError, "eps"),
        (lambda: gyroplane_logits(x, x[0], x, c=1.0), ValueError, "points"),
        (lambda: gyroplane_logits(x, x, x[:1], c=1.0), ValueError, "normals"),
        (lambda: gyroplane_logits(x, wide, wide, c=1.0), ValueError, "width"),
        (lambda: pairwise_distance(x[0], x, c=1.0), ValueError, "x must have 2"),
    ]
    check_errors(cases)
