"""What a natural-gradient step is made of, as plain functions of vectors and parameters.

Vectors [P] hold all parameters that are moved, one after the other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

# The whole step, its half, .., a 512th of it: where none of these will do, the direction is wrong.
_MAX_TRIALS = 10
_BACKTRACKING = 0.5

# Of |residual|^2 / |target|^2: beyond it, products in float32 tell nothing new.
_CG_TOLERANCE = 1e-10


def conjugate_gradient(
    product: Callable[[Tensor], Tensor], target: Tensor, num_iterations: int
) -> Tensor:
    """Solves F x = target for x, nearly, from products with F alone.

    Args:
        product: From v [P] to F v [P]; F is symmetric and has no negative eigenvalues.
        target: [P].
        num_iterations: At most so many products. Fewer if that is exact enough.

    Returns:
        x [P].
    """
    solution, residual, search = torch.zeros_like(target), target.clone(), target.clone()
    squared = residual @ residual
    enough = _CG_TOLERANCE * squared
    for _ in range(num_iterations):
        if squared <= enough:
            break
        image = product(search)
        curvature = search @ image
        if not curvature > 0.0:
            break  # Where F is flat there is no knowing how far to go.
        # x += a p, r -= a F p, with a = r.r / p.Fp
        step = squared / curvature
        solution += step * search
        residual -= step * image
        last, squared = squared, residual @ residual
        # p = r + (r.r / the last r.r) p
        search = residual + squared / last * search
    return solution


def line_search(
    parameters: Sequence[Tensor],
    full_step: Tensor,
    loss_and_kl: Callable[[], Tensor],
    *,
    max_kl: float,
) -> tuple[float, int]:
    """Makes the largest of ever smaller steps that lowers the loss within the bound.

    Args:
        parameters: They are moved in place. Where no step will do, or if it is interrupted, they
            are left as they were, to the last bit.
        full_step: The first step to try, [P].
        loss_and_kl: The loss and KL(old, new) [2] at the parameters as they then are.
        max_kl: The bound on the latter.

    Returns:
        The fraction of the step that was made, 0 if none, and how many were rejected.
    """
    start = flat(parameters).detach()
    (first_loss, _), accepted = loss_and_kl().tolist(), False
    try:
        for trial in range(_MAX_TRIALS):
            fraction = _BACKTRACKING**trial
            assign(parameters, start + fraction * full_step)
            loss, kl = loss_and_kl().tolist()
            # False also where one of them is NaN.
            accepted = loss < first_loss and kl <= max_kl
            if accepted:
                return fraction, trial
        return 0.0, _MAX_TRIALS
    finally:
        if not accepted:
            assign(parameters, start)


def hessian_product(value: Tensor, parameters: Sequence[Tensor]) -> Callable[[Tensor], Tensor]:
    """Returns the function from v [P] to H v [P], H being the Hessian of a value.

    Each product takes a backward pass through a backward pass, which is recorded here, once.

    Args:
        value: A scalar.
        parameters: What it is differentiated by.
    """
    gradient = flat(gradients(value, parameters, create_graph=True))
    # H v = grad(grad(value) . v)
    return lambda vector: flat(gradients(gradient @ vector.to(gradient), parameters))


def gradients(
    value: Tensor, parameters: Sequence[Tensor], create_graph: bool = False
) -> tuple[Tensor, ...]:
    """Returns the gradients by each parameter, 0 where the value doesn't depend on it."""
    return torch.autograd.grad(
        value, parameters, retain_graph=True, create_graph=create_graph, materialize_grads=True
    )


def flat(tensors: Sequence[Tensor]) -> Tensor:
    """Returns all numbers of some tensors as one vector [P]."""
    return torch.cat([tensor.reshape(-1) for tensor in tensors])


@torch.no_grad()
def assign(parameters: Sequence[Tensor], vector: Tensor) -> None:
    """Puts what `flat` returned in the place of parameters."""
    parts = torch.split(vector, [parameter.numel() for parameter in parameters])
    for parameter, part in zip(parameters, parts, strict=True):
        parameter.copy_(part.view_as(parameter))
