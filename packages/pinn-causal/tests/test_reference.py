"""The fast code equals the paper's algorithm written down plainly."""

import pytest
import torch

from offprints.pinn_causal import AllenCahn, CausalPINN, ModifiedMLP, SpaceTimeEmbedding, causal_loss, reference
from offprints.pinn_causal.networks import MLP


def make_net() -> torch.nn.Module:
    return ModifiedMLP(2, (6, 6), 1, embedding=SpaceTimeEmbedding(periods=[2.0], modes=[3]))


def test_loss_and_gradient() -> None:
    torch.manual_seed(0)
    net, problem = make_net().double(), AllenCahn()
    t, x = torch.linspace(0, 1, 5).double(), torch.linspace(-1, 1, 7).double()
    x0 = -1 + 2 * torch.arange(16).double() / 16
    state = problem.initial(x0)
    plain, w = reference.loss(net, reference.allen_cahn, t, x, x0, state, 100.0, 3.0)
    initial = 100 * problem.initial_loss(net, x0, state)
    fast = causal_loss(problem.temporal_losses(net, t, x), 3.0, initial_loss=initial)
    torch.testing.assert_close(fast.loss, plain)
    torch.testing.assert_close(fast.weights, w)
    gradients = [torch.autograd.grad(v, list(net.parameters()), retain_graph=True) for v in (fast.loss, plain)]
    torch.testing.assert_close(*gradients, rtol=1e-8, atol=1e-10)


def test_golden_weights(golden) -> None:
    data = golden("parity")
    losses = list(data["w_losses"])
    for eps in ("0.01", "1", "100"):
        none = torch.zeros((), dtype=torch.float64)
        torch.testing.assert_close(reference.weights(losses, float(eps), none), data[f"w_eps{eps}"].double())


@pytest.mark.parametrize("values", [(3.0,), (1e-9, 3.0)])
def test_a_march_is_the_reference(values) -> None:
    """Annealing, steps of Adam and the hand-over: equal to rounding after two windows."""

    def plain_net() -> torch.nn.Module:
        torch.manual_seed(4)
        return MLP(2, (6,), 1).double()

    model = CausalPINN(
        AllenCahn(), lambda: MLP(2, (6,), 1), eps=values, sampling="grid", n_t=5, n_x=7, window_length=0.5, n_windows=2,
        extend=0.0, max_steps=3, check_every=1, decay_rate=1.0, weight_by_initial=True, random_state=4, device="cpu",
        dtype=torch.float64, initial_weight=1e-3,
    )  # fmt: skip
    x0 = -1 + 2 * torch.arange(16).double() / 16
    with pytest.warns(Warning, match="did not reach"):
        model.fit(AllenCahn().initial(x0))
    x, t = torch.linspace(-1, 1, 7).double(), torch.linspace(0, 0.5, 5).double()
    # The networks of this package see the time since the beginning of their window: an autonomous equation is the same.
    nets = reference.march(
        plain_net, reference.allen_cahn, [t, t], x, x0, AllenCahn().initial(x0), values=values, max_steps=3, weight=1e-3
    )
    for start, ours, theirs in zip((0.0, 0.5), model.nets_, nets, strict=True):
        z = torch.rand(5, 2, dtype=torch.float64)
        shifted = z + torch.tensor([start, 0.0], dtype=torch.float64)
        torch.testing.assert_close(ours(shifted), theirs(z), rtol=1e-6, atol=1e-8)
