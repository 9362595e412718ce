"""The server's rule in closed form: clients' updates enter it through their m x m Gram matrix alone.

With U the clients' updates [m, d], G = U U^T = m H has the eigenpairs (m s_j, e_j), the principal directions are
v_j = U^T e_j, <U_i, v_j> = m s_j e_ij and ||v_j||^2 = m s_j. So a step along principal directions is `a^T U`: no
direction is ever written out, and the coefficients a of all tensors of a model come from one batched `eigh`.
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from offprints.shared.device import working_dtype
from offprints.shared.validation import check_choice, check_number, check_tensor

Rule = Literal["signed", "projection"]

# A client orthogonal to a direction has e_ij of rounding's size; its sign would decide a term of full size.
ORTHOGONAL = 1e-10
# Directions whose share of the largest eigenvalue is rounding's.
ZERO_DIRECTION = 1e-14


def principal_aggregate(
    updates: Float[Tensor, "m d"], *, k_proportion: float = 0.8, rule: Rule = "signed"
) -> Float[Tensor, " d"]:
    """The step along the principal directions of the updates of m clients, of one tensor of the model.

    With "signed", the official rule, each of the k largest directions moves by the mean over clients of
    `share_j * ||U_i|| * sign(<U_i, v_j>)`, share_j the eigenvalue's share of the sum of all m. Clients that point
    against each other cancel, and the step is shorter than the mean update. With "projection" it is the mean update,
    projected on these directions.

    Nearly equal eigenvalues leave the directions open, and rounding decides between them: so it is when clients have
    nothing in common. The result has no graph. Half types are computed in float32.

    Args:
        updates: Client minus global weights, one row a client.
        k_proportion: Share of the m directions that is kept, in (0, 1]: k = floor(m * k_proportion), at least 1.
        rule: "signed" or "projection".

    Returns:
        The step, in the type of `updates`.

    Raises:
        TypeError: `updates` is not a floating tensor, `k_proportion` not a number.
        ValueError: `updates` is not 2-D, empty or not finite; `k_proportion` outside (0, 1]; an unknown rule.

    Example:
        >>> updates = torch.tensor([[3.0, 4.0], [3.0, 4.0], [3.0, 4.0], [-3.0, -4.0]])
        >>> principal_aggregate(updates)  # the one against the others cancels one of them
        tensor([1.5000, 2.0000])
    """
    check_tensor(updates, "updates", ndim=2)
    with torch.no_grad():
        exact = to_double(updates.detach())
        scale = exact.abs().amax()  # so that no square overflows or vanishes
        unit = exact / torch.where(scale > 0, scale, 1)
        coefficients = principal_coefficients(unit @ unit.T, k_proportion=k_proportion, rule=rule)
        return (coefficients @ exact).to(updates)


def principal_coefficients(
    gram: Float[Tensor, "... m m"], *, k_proportion: float = 0.8, rule: Rule = "signed"
) -> Float[Tensor, "... m"]:
    """Coefficients a of the step `sum_l a_l U_l` from the Gram matrix U U^T; many tensors of a model at once.

    For "signed", with e_j and g_j = m s_j the eigenvectors and eigenvalues of the Gram matrix, largest first:
    `c_j = (g_j / sum g) g_j^(-1/2) mean_i(||U_i|| sign(e_ij))` for j <= k and `a_l = sum_j e_lj c_j`. For "projection"
    `c_j = mean_i e_ij`. Signs of |e_ij| <= 1e-10 count as 0, and so do directions with g_j <= 1e-14 g_1.

    Args:
        gram: Symmetric, positive semidefinite.
        k_proportion, rule: As in `principal_aggregate`.

    Returns:
        The coefficients, computed in float64 and returned in the type of `gram`, float32 for half types.

    Raises:
        TypeError, ValueError: As `principal_aggregate`; `gram` is not square.

    Example:
        >>> principal_coefficients(torch.ones(3, 3))  # identical clients: the mean
        tensor([0.3333, 0.3333, 0.3333])
    """
    check_tensor(gram, "gram", min_ndim=2)
    if gram.shape[-1] != gram.shape[-2]:
        raise ValueError(f"gram must be square in its last two dimensions, got shape {tuple(gram.shape)}")
    check_rule(k_proportion, rule)
    with torch.no_grad():
        exact = to_double(gram.detach())
        scale = exact.diagonal(dim1=-2, dim2=-1).amax(-1)[..., None, None]
        exact = exact / torch.where(scale > 0, scale, 1)
        a = _coefficients(exact, kept(gram.shape[-1], k_proportion), rule)
        # With "signed", a is of degree 0 in the updates: the scale of the Gram matrix does not matter to it.
        return a.to(device=gram.device, dtype=working_dtype(gram))


def _coefficients(gram: Tensor, k: int, rule: Rule) -> Tensor:
    g, e = torch.linalg.eigh(gram)  # ascending
    g, e = g[..., -k:].clamp_min(0), e[..., -k:]
    is_direction = g > ZERO_DIRECTION * g[..., -1:]
    if rule == "projection":
        c = e.mean(-2)
    else:
        norms = gram.diagonal(dim1=-2, dim2=-1).clamp_min(0).sqrt()
        total = gram.diagonal(dim1=-2, dim2=-1).sum(-1, keepdim=True)  # of all eigenvalues
        signs = torch.where(e.abs() > ORTHOGONAL, e.sign(), 0)
        c = g.sqrt() / torch.where(total > 0, total, 1) * (norms.unsqueeze(-1) * signs).mean(-2)
    return (e * torch.where(is_direction, c, 0).unsqueeze(-2)).sum(-1)


def kept(m: int, k_proportion: float) -> int:
    """How many of m directions are kept: at least one, and 0.2 of 5 is one, whatever their product rounds to."""
    return max(1, int(m * k_proportion + 1e-9))


def check_rule(k_proportion: float, rule: str) -> None:
    """Refuse a share outside (0, 1] and an unknown rule."""
    check_number(k_proportion, "k_proportion", low=0, high=1, open_low=True)
    check_choice(rule, "rule", ("signed", "projection"))


def to_double(x: Tensor) -> Tensor:
    """In float64; on the CPU where the device has no such type (MPS)."""
    return (x.cpu() if x.device.type == "mps" else x).double()
