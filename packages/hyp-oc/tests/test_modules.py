"""The modules: embedding, classifier, sampler, head, losses; their conformance and what the specification fixes."""

from __future__ import annotations

import copy
import io
import warnings

import pytest
import torch
from torch import nn

from offprints.hyp_oc import (
    GyroplaneClassifier,
    HypCELoss,
    HypOCHead,
    HypOCLoss,
    HypPCLoss,
    PseudoNegativeSampler,
    ToPoincare,
    conformal_factor,
    expmap0,
    hyp_ce_loss,
    hyp_pc_loss,
    project,
)
from offprints.shared.testing import check_errors, check_loss, check_module


def features(generator: torch.Generator) -> tuple[torch.Tensor]:
    return (torch.randn(6, 5, generator=generator),)


def in_ball(generator: torch.Generator) -> tuple[torch.Tensor]:
    return (project(torch.randn(6, 5, generator=generator), c=0.1, eps=0.3),)


@pytest.mark.parametrize("learn_origin", [False, True])
def test_to_poincare(learn_origin: bool) -> None:
    module = ToPoincare(dim=5, learn_origin=learn_origin)
    check_module(
        module,
        features,
        nan="raise",
        skip={} if learn_origin else {"torch.compile": "within the loss, below"},
        errors=[
            (lambda: ToPoincare(c=0.0), ValueError, "c must be"),
            (lambda: ToPoincare(clip_radius=0.0), ValueError, "clip_radius"),
            (lambda: ToPoincare(learn_origin=True), ValueError, "learn_origin"),
            (lambda: ToPoincare(learn_origin=1), TypeError, "learn_origin"),
            (lambda: ToPoincare(dim=0), ValueError, "dim"),
            (lambda: module(torch.zeros(2, 4)), ValueError, "width"),
            (lambda: module(torch.full((2, 5), torch.nan)), ValueError, "x must be finite"),
            (lambda: module(torch.full((2, 5), torch.inf)), ValueError, "x must be finite"),
        ],
    )
    assert (module.origin is None) != learn_origin


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_embedding_is_projected(dtype: torch.dtype) -> None:
    """Long features end at the margin that the paper's code leaves, not at the boundary, from a learned origin too."""
    x = 20 * torch.randn(6, 5, dtype=dtype)
    for c in (0.1, 1.0, 100.0):
        to_poincare = ToPoincare(c=c, dim=5, learn_origin=True, clip_radius=None).to(dtype)
        for origin in (torch.zeros(5), torch.full((5,), 0.2 / c**0.5)):
            with torch.no_grad():
                to_poincare.origin.copy_(origin)
            lengths = c**0.5 * to_poincare(x).norm(dim=1).double()
            torch.testing.assert_close(lengths, torch.full_like(lengths, 0.999), rtol=1e-6, atol=0)


def test_origin_moves_the_embedding() -> None:
    """Features of length 0, as after a ReLU that is off everywhere, lie at the base point."""
    module = ToPoincare(dim=3, learn_origin=True, c=0.5)
    with torch.no_grad():
        module.origin.copy_(torch.tensor([1.0, 0.0, -0.5]))
    z = module(torch.zeros(2, 3))
    torch.testing.assert_close(z[0].detach(), expmap0(module.origin, c=0.5).detach())
    z.sum().backward()
    assert module.origin.grad.isfinite().all()


def test_riemannian_gradient() -> None:
    """The stated factor, of each module's own curvature whatever was built after it, and its own second derivative."""
    x = torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    weight = torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    modules = {c: (ToPoincare(c=c), ToPoincare(c=c, riemannian_gradient=False)) for c in (0.1, 2.0)}
    for c, (scaled, plain) in modules.items():
        leaf = x.clone().requires_grad_()
        z = scaled(leaf)
        assert torch.equal(z, plain(x))
        (found,) = torch.autograd.grad((z * weight).sum(), leaf, create_graph=True)
        factor = (1 / conformal_factor(z.detach(), c=c) ** 2)[:, None]
        (expected,) = torch.autograd.grad((plain(leaf) * weight * factor).sum(), leaf)
        torch.testing.assert_close(found.detach(), expected, rtol=1e-12, atol=1e-15)
        by_func = torch.func.grad(lambda x, s=scaled: (s(x) * weight).sum())(x)
        torch.testing.assert_close(by_func, expected, rtol=1e-12, atol=1e-15)
        mapped = torch.func.vmap(torch.func.grad(lambda x, w, s=scaled: (s(x) * w).sum()))(x, weight)
        torch.testing.assert_close(mapped, expected, rtol=1e-12, atol=1e-15)
        compiled = torch.compile(scaled, backend="aot_eager")
        other = x.clone().requires_grad_()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the compiler itself
            (compiled(other) * weight).sum().backward()
        torch.testing.assert_close(other.grad, expected, rtol=1e-10, atol=1e-14)
        # The derivative of the scaled gradient, as a step of training that is itself differentiated has it.
        step = 1e-6

        def gradient(x, s=scaled):
            leaf = x.clone().requires_grad_()
            return torch.autograd.grad((s(leaf) * weight).sum(), leaf)[0]

        (second,) = torch.autograd.grad(found.sum(), leaf)
        ones = torch.zeros_like(x)
        ones[0, 0] = 1
        difference = (gradient(x + step * ones) - gradient(x - step * ones)).sum() / (2 * step)
        torch.testing.assert_close(second[0, 0], difference, rtol=1e-5, atol=1e-9)


def test_classifier() -> None:
    check_module(
        GyroplaneClassifier(5, 3),
        in_ball,
        skip={"torch.compile": "within the loss, below"},
        errors=[
            (lambda: GyroplaneClassifier(0, 3), ValueError, "dim"),
            (lambda: GyroplaneClassifier(5, 0), ValueError, "num_classes"),
            (lambda: GyroplaneClassifier(5, 3, c=-1.0), ValueError, "c must be"),
            (lambda: GyroplaneClassifier(5, 3)(torch.zeros(2, 4)), ValueError, "width"),
            (lambda: GyroplaneClassifier(5, 3)(torch.zeros(2, 5).long()), TypeError, "z"),
        ],
    )


def test_classifier_far_out() -> None:
    """Offsets whose points round to the boundary keep finite logits and gradients."""
    classifier = GyroplaneClassifier(3, 2, c=0.1).double()
    with torch.no_grad():
        classifier.offsets.mul_(0).add_(torch.tensor([[60.0, 0, 0], [0, 0, 90.0]]))
    logits = classifier(torch.zeros(1, 3, dtype=torch.float64))
    assert logits.isfinite().all()
    logits.sum().backward()
    assert classifier.offsets.grad.isfinite().all()
    assert classifier.normals.grad.isfinite().all()


class Seeded(nn.Module):
    """The sampler with the same draws at every call."""

    def __init__(self) -> None:
        super().__init__()
        self.sampler = PseudoNegativeSampler(5, variance=0.5)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.sampler(features, generator=torch.Generator().manual_seed(0))


def test_sampler_conformance() -> None:
    check_module(
        Seeded(),
        features,
        nan="raise",
        skip={
            "dtype": "a generator draws other numbers in float64",
            "torch.compile": "a generator is no input of a compiled graph",
        },
        errors=[
            (lambda: PseudoNegativeSampler(5, alpha=1.1), ValueError, "alpha"),
            (lambda: PseudoNegativeSampler(5, alpha=-0.1), ValueError, "alpha"),
            (lambda: PseudoNegativeSampler(5, variance=0.0), ValueError, "variance"),
            (lambda: PseudoNegativeSampler(5, running="mean"), ValueError, "running"),
            (lambda: PseudoNegativeSampler(0), ValueError, "dim"),
            (lambda: PseudoNegativeSampler(5)(torch.zeros(2, 5), 0), ValueError, "n must be"),
            (lambda: PseudoNegativeSampler(5)(torch.zeros(2, 5), generator=3), TypeError, "generator"),
            (lambda: PseudoNegativeSampler(5)(torch.zeros(2, 4)), ValueError, "width"),
            (lambda: PseudoNegativeSampler(5)(torch.zeros(5)), ValueError, "features"),
            (lambda: PseudoNegativeSampler(5)(torch.zeros(0, 5)), ValueError, "empty"),
            (lambda: PseudoNegativeSampler(5)(torch.full((2, 5), torch.nan)), ValueError, "finite"),
        ],
    )


def test_sampler_rules() -> None:
    batches = torch.randn(5, 4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    means = batches.mean(1)
    for running in ("previous_batch", "ema"):
        sampler = PseudoNegativeSampler(3, alpha=0.8, running=running).double()
        for _ in range(2):
            past = torch.zeros(3, dtype=torch.float64)
            for batch, mean in zip(batches, means, strict=True):
                sampler(batch)
                mu = 0.8 * past + 0.2 * mean
                torch.testing.assert_close(sampler.mean, mu)
                past = mean if running == "previous_batch" else mu
            sampler.reset()
            assert (sampler.mean == 0).all()
            assert (sampler.previous == 0).all()


def test_sampler_moments_and_streams() -> None:
    sampler = PseudoNegativeSampler(4, alpha=0.5, variance=0.09)
    drawn = sampler(torch.full((3, 4), 2.0), 40_000, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(drawn.mean(0), torch.full((4,), 1.0), atol=0.01, rtol=0)
    torch.testing.assert_close(drawn.var(0), torch.full((4,), 0.09), atol=0.003, rtol=0)
    assert torch.corrcoef(drawn.T).sub(torch.eye(4)).abs().max() < 0.02
    live = torch.randn(6, 4, requires_grad=True)
    assert not sampler(live).requires_grad
    assert not sampler.mean.requires_grad
    assert sampler.previous.grad_fn is None  # the batch before is not kept alive by its graph
    assert sampler(torch.ones(6, 4)).shape == (6, 4)
    torch.manual_seed(5)
    first = PseudoNegativeSampler(4)(live.detach())
    torch.manual_seed(5)
    assert torch.equal(PseudoNegativeSampler(4)(live.detach()), first)
    generator = torch.Generator().manual_seed(3)
    state = torch.get_rng_state()
    sampler(live, generator=generator)
    assert torch.equal(torch.get_rng_state(), state)


def test_sampler_half_and_modes() -> None:
    """Sums of half types would overflow; evaluation remembers nothing; the state travels."""
    sampler = PseudoNegativeSampler(2, alpha=0.5)
    big = torch.full((100, 2), 60_000.0, dtype=torch.float16)
    drawn = sampler(big)
    assert drawn.dtype == torch.float16
    torch.testing.assert_close(sampler.mean, torch.full((2,), 30_000.0), rtol=1e-3, atol=0)
    assert sampler.mean.dtype == torch.float32
    sampler.eval()
    before = {name: value.clone() for name, value in sampler.state_dict().items()}
    sampler(torch.ones(2, 2))
    assert all(torch.equal(before[name], value) for name, value in sampler.state_dict().items())
    file = io.BytesIO()
    torch.save(sampler.state_dict(), file)
    file.seek(0)
    other = PseudoNegativeSampler(2, alpha=0.5)
    other.load_state_dict(torch.load(file, weights_only=True))
    batch = torch.ones(2, 2)
    a, b = (s.train()(batch, generator=torch.Generator().manual_seed(0)) for s in (sampler, other))
    assert torch.equal(a, b)


def test_head() -> None:
    check_module(
        HypOCHead(5, (7, 4)),
        features,
        skip={"torch.compile": "within the loss, below"},
        errors=[
            (lambda: HypOCHead(5, ()), ValueError, "hidden"),
            (lambda: HypOCHead(5, 4), TypeError, "hidden"),
            (lambda: HypOCHead(5, (4, 0)), ValueError, "hidden"),
            (lambda: HypOCHead(5, (4,), num_classes=1), ValueError, "num_classes"),
            (lambda: HypOCHead(5, (4,), c=0.0), ValueError, "c must be"),
            (lambda: HypOCHead(5, (4,), clip_radius=-1.0), ValueError, "clip_radius"),
            (lambda: HypOCHead(5, (4,))(torch.zeros(2, 6)), ValueError, "features"),
            (lambda: HypOCHead(5, (4,))(torch.zeros(5)), ValueError, "features"),
            (lambda: HypOCHead(5, (4,))(torch.zeros(0, 5)), ValueError, "features"),
            (lambda: HypOCHead(5, (4,))(torch.full((1, 5), torch.nan)), ValueError, "features"),
        ],
    )
    with torch.device("meta"):
        head = HypOCHead()
    assert [tuple(layer.weight.shape) for layer in head.layers] == [(8192, 4096), (1000, 8192), (512, 1000), (128, 512)]
    output = HypOCHead(5, (7, 4))(torch.randn(3, 5))
    assert (output.embedding >= -1e-6).all()  # a ReLU after the last layer too, and a base point at 0
    assert output.logits.shape == (3, 2)


def seeded_loss(alpha: float = 0.8) -> HypOCLoss:
    torch.manual_seed(0)
    return HypOCLoss(HypOCHead(5, (7, 4)), PseudoNegativeSampler(5, alpha=alpha))


def test_loss_parts_and_weights() -> None:
    criterion = seeded_loss()
    x = torch.randn(6, 5)

    def at(seed: int, loss: HypOCLoss):
        return copy.deepcopy(loss)(x, generator=torch.Generator().manual_seed(seed))

    loss, parts = at(1, criterion)
    assert set(parts) == {"hyp_ce", "hyp_pc"}
    torch.testing.assert_close(loss, parts["hyp_ce"] + parts["hyp_pc"])
    weighted = HypOCLoss(criterion.head, criterion.sampler, pc_weight=0.25, ce_weight=2.0, form="arctan")
    other, of_other = at(1, weighted)
    torch.testing.assert_close(other, 2 * parts["hyp_ce"] + 0.25 * of_other["hyp_pc"])
    assert of_other["hyp_pc"] < parts["hyp_pc"]
    loss.backward()
    x = x.clone().requires_grad_()
    criterion(x).loss.backward()
    assert x.grad.isfinite().all()
    assert (x.grad != 0).any()


def test_the_loss_runs_the_head_once() -> None:
    criterion, seen = seeded_loss(), []
    criterion.head.register_forward_hook(lambda module, args, output: seen.append(len(args[0])))
    criterion(torch.randn(6, 5))
    assert seen == [12]


class Own(nn.Module):
    """A head of the user's own."""

    c = 0.1

    def __init__(self, finish) -> None:
        super().__init__()
        self.inner, self.finish = HypOCHead(5, (7, 4)), finish

    def forward(self, x):
        return self.finish(*self.inner(x))


def test_head_of_ones_own() -> None:
    def loss(finish):
        torch.manual_seed(0)
        return HypOCLoss(Own(finish), PseudoNegativeSampler(5))(torch.ones(4, 5)).loss

    torch.testing.assert_close(loss(lambda z, y: [z, y]), seeded_loss()(torch.ones(4, 5)).loss)
    check_errors(
        [
            (lambda: loss(lambda z, y: {"embedding": z, "logits": y}), TypeError, "head must return"),
            (lambda: loss(lambda z, y: y), TypeError, "head must return"),
            (lambda: loss(lambda z, y: None), TypeError, "head must return"),
            (lambda: loss(lambda z, y: (z, y, y)), TypeError, "head must return"),
            (lambda: loss(lambda z, y: (z[:4], y)), ValueError, "embedding"),
            (lambda: loss(lambda z, y: (z.mean(1), y)), ValueError, "embedding"),
            (lambda: loss(lambda z, y: (z, y[:4])), ValueError, "logits"),
            (lambda: loss(lambda z, y: (z, y[:, :1])), ValueError, "logits"),
        ]
    )


def test_loss_errors_change_nothing() -> None:
    criterion = seeded_loss()
    head, sampler = criterion.head, criterion.sampler
    check_errors(
        [
            (lambda: criterion(torch.zeros(5, 5)), ValueError, "even"),
            (lambda: criterion(torch.zeros(0, 5)), ValueError, "empty"),
            (lambda: criterion(torch.zeros(4, 6)), ValueError, "width"),
            (lambda: criterion(torch.zeros(4)), ValueError, "features"),
            (lambda: criterion(torch.full((4, 5), torch.inf)), ValueError, "finite"),
            (lambda: criterion(torch.zeros(4, 5).long()), TypeError, "features"),
            (lambda: HypOCLoss(head, sampler, pc_weight=-1.0), ValueError, "pc_weight"),
            (lambda: HypOCLoss(head, sampler, form="sinh"), ValueError, "form"),
            (lambda: HypOCLoss(head, nn.Identity()), TypeError, "sampler"),
            (lambda: HypOCLoss(nn.Identity(), sampler), TypeError, "head"),
            (lambda: HypOCLoss(head, PseudoNegativeSampler(4)), ValueError, "sampler"),
        ]
    )
    assert (sampler.previous == 0).all()


def test_compiled_training_step() -> None:
    """The whole loss under the compiler: the same loss and gradients as without, with the same draws."""
    criterion = seeded_loss()
    x = torch.randn(6, 5)

    def run(loss, module):
        torch.manual_seed(3)
        value = loss(x).loss
        module.zero_grad()
        value.backward()
        return [value.detach(), *(p.grad.clone() for p in module.parameters())]

    plain = copy.deepcopy(criterion)
    eager = run(plain, plain)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the compiler itself
        compiled = run(torch.compile(criterion, backend="aot_eager"), criterion)
    for found, expected in zip(compiled, eager, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


def test_hyp_pc_loss() -> None:
    for form in ("geodesic", "arctan"):
        check_loss(
            HypPCLoss(form=form),
            in_ball,
            special={
                "coincident": lambda g: (in_ball(g)[0][:3].repeat(2, 1),),
                "zeros": lambda g: (torch.zeros(4, 3),),
                "one pair coincident": lambda g: (in_ball(g)[0][[0, 1, 2, 0, 4, 5]],),
            },
            skip={"batch permutation": "row i is paired with row i + b / 2"},
        )


def test_hyp_pc_loss_is_the_loop() -> None:
    from offprints.hyp_oc.reference import hyp_pc

    (x,) = in_ball(torch.Generator().manual_seed(4))
    assert float(hyp_pc_loss(x.double())) == pytest.approx(hyp_pc(x.double().numpy(), 0.1), rel=1e-12)


def test_hyp_ce_loss() -> None:
    check_loss(
        HypCELoss(),
        lambda g: (torch.randn(7, 3, generator=g), torch.randint(3, (7,), generator=g)),
    )
    logits = torch.tensor([[2.0, 0.0]])
    assert float(hyp_ce_loss(logits, torch.tensor([0]))) == pytest.approx(0.126928, abs=1e-6)


def test_losses_bad_inputs() -> None:
    x = torch.zeros(4, 3)
    check_errors(
        [
            (lambda: hyp_pc_loss(x[:3]), ValueError, "even"),
            (lambda: hyp_pc_loss(x[:0]), ValueError, "empty"),
            (lambda: hyp_pc_loss(x, form="tan"), ValueError, "form"),
            (lambda: hyp_pc_loss(x, c=0.0), ValueError, "c must be"),
            (lambda: hyp_pc_loss(x + 5), ValueError, "points of the ball"),
            (lambda: hyp_pc_loss(x[0]), ValueError, "x must have 2"),
            (lambda: HypPCLoss(form="tan"), ValueError, "form"),
            (lambda: HypPCLoss(c=-1.0), ValueError, "c must be"),
            (lambda: hyp_ce_loss(x, torch.tensor([0, 1, 2, 3])), ValueError, "labels"),
            (lambda: hyp_ce_loss(x, torch.zeros(4, 1, dtype=torch.long)), ValueError, "labels"),
            (lambda: hyp_ce_loss(x, torch.zeros(3, dtype=torch.long)), ValueError, "labels"),
        ]
    )
