"""What estimators on scikit-learn's conventions need: inputs as tensors, results of the input's kind, fitted or not.

scikit-learn itself takes long to import: only who catches or raises `NotFittedError` pays.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Concatenate, ParamSpec, TypeVar

import numpy as np
import torch
from torch import Tensor

from offprints.shared.validation import check_tensor

P = ParamSpec("P")
Owner = TypeVar("Owner")
Result = TypeVar("Result")

if TYPE_CHECKING:
    from sklearn.exceptions import NotFittedError as _SklearnNotFittedError

    class NotFittedError(_SklearnNotFittedError, RuntimeError):
        """An estimator is used before `fit`."""


def __getattr__(name: str) -> Any:
    if name == "NotFittedError":
        from sklearn.exceptions import NotFittedError as Base

        error = type(
            "NotFittedError",
            (Base, RuntimeError),
            {"__doc__": "An estimator is used before `fit`.", "__module__": __name__},
        )
        globals()[name] = error
        return error
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def as_features(
    X: Any,
    name: str,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    ndim: int = 2,
) -> Tensor:
    """An estimator's input as a tensor: NumPy array (or what converts to one) or tensor, floating and finite.

    Args:
        X: The data.
        name: Name of the argument.
        dtype: Type of the result; default: that of ``X``.
        device: Device of the result; default: that of ``X``.
        ndim: Number of axes.

    Raises:
        TypeError: not an array, sparse, or of a type that is not floating or that torch lacks.
        ValueError: wrong number of axes, empty, masked, not finite.

    Example:
        >>> as_features(np.zeros((2, 3)), "X").dtype
        torch.float64
        >>> as_features(np.zeros(3), "X")
        Traceback (most recent call last):
        ValueError: X must have 2 dimensions, got shape (3,). Reshape your data...
    """
    if not isinstance(X, Tensor):
        if hasattr(X, "toarray"):
            raise TypeError(f"{name} must be dense, got a sparse {type(X).__name__}: toarray() makes it dense")
        if isinstance(X, (str, bytes, dict, set)) or X is None:
            raise TypeError(f"{name} must be a NumPy array or a tensor, got {type(X).__name__}")
        if np.ma.is_masked(X):
            raise ValueError(f"{name} must not have masked entries: fill them in first")
        array = np.asarray(X)
        if array.dtype.kind != "f":
            raise TypeError(f"{name} must have a floating type, got {array.dtype}")
        if array.dtype.itemsize > 8:
            raise TypeError(f"{name} must have a floating type that torch has, got {array.dtype}")
        array = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("="))
        X = torch.from_numpy(array if array.flags.writeable else array.copy())
    elif X.layout != torch.strided:
        raise TypeError(f"{name} must be dense, got a sparse tensor: to_dense() makes it dense")
    # Two messages in the words that scikit-learn's users and checks look for.
    if ndim == 2 and X.ndim == 1:
        raise ValueError(
            f"{name} must have 2 dimensions, got shape {tuple(X.shape)}. Reshape your data: with reshape(-1, 1) for one"
            " feature, with reshape(1, -1) for one sample"
        )
    if ndim == 2 and X.ndim == 2 and X.shape[1] == 0:
        raise ValueError(
            f"{name} must not be empty, got 0 feature(s) (shape={tuple(X.shape)}) while a minimum of 1 is required"
            " for each sample"
        )
    check_tensor(X, name, ndim=ndim)
    return X.to(device=device, dtype=dtype)


def like_input(result: Tensor, X: Any) -> Any:
    """An estimator's result in the kind of its input: a tensor on X's device for a tensor, else a NumPy array.

    Example:
        >>> like_input(torch.tensor([1, 2]), np.zeros((2, 1)))
        array([1, 2])
        >>> like_input(torch.tensor([1, 2]), torch.zeros(2, 1))
        tensor([1, 2])
    """
    if isinstance(X, Tensor):
        return result.to(X.device)
    return result.detach().cpu().numpy()


def check_fitted(estimator: Any, attribute: str) -> None:
    """Raise NotFittedError where the estimator lacks what ``fit`` sets.

    Example:
        >>> model = torch.nn.Identity()
        >>> try:
        ...     check_fitted(model, "weights_")
        ... except NotFittedError as error:
        ...     print(error)
        Identity is not fitted yet; call fit first
    """
    if getattr(estimator, attribute, None) is None:
        error = sys.modules[__name__].NotFittedError
        raise error(f"{type(estimator).__name__} is not fitted yet; call fit first")


class LearnedAttributes:
    """Says that fit is missing where a learned attribute is read before it; keeps tensors out of stored states.

    A mixin: ``_learned`` names the attributes. pickle, joblib and skops then store arrays and plain values alone, and a
    state from a GPU loads on a machine that has none.

    Example:
        >>> class Mean(LearnedAttributes):
        ...     _learned = ("mean_",)
        >>> try:
        ...     Mean().mean_
        ... except NotFittedError as error:
        ...     print(error)
        Mean is not fitted yet; mean_ comes with fit
    """

    _learned: ClassVar[tuple[str, ...]] = ()
    n_features_in_: int

    def __getattr__(self, name: str) -> Any:
        if name in self._learned:
            error = sys.modules[__name__].NotFittedError
            raise error(f"{type(self).__name__} is not fitted yet; {name} comes with fit")
        return object.__getattribute__(self, name)  # raises again what was raised, also by a property

    def __getstate__(self) -> dict[str, Any]:
        """Plain values and arrays alone, so that pickle, joblib and skops store and load it."""
        return {name: _stored(value) for name, value in vars(self).items()}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        self.__dict__.update({name: _restored(value) for name, value in state.items()})


def all_or_nothing(
    method: Callable[Concatenate[Owner, P], Result],
) -> Callable[Concatenate[Owner, P], Result]:
    """A training method that leaves its object as it was where it refuses the data or is interrupted.

    Attributes are put back, not copied: the method must make new ones and not write into old ones.

    Example:
        >>> class Mean:
        ...     fit = all_or_nothing(lambda self, X: vars(self).update(count=len(X), mean=sum(X) / len(X)))
        >>> mean = Mean()
        >>> mean.fit([1.0, 3.0])
        >>> mean.mean
        2.0
    """

    @functools.wraps(method)
    def train(self: Owner, /, *args: P.args, **kwargs: P.kwargs) -> Result:
        before = dict(vars(self))
        try:
            return method(self, *args, **kwargs)
        except BaseException:
            vars(self).clear()
            vars(self).update(before)
            raise

    return train


def _stored(value: Any) -> Any:
    if isinstance(value, Tensor):
        held = value.detach().cpu()
        half = held.dtype == torch.bfloat16  # NumPy has no such type
        return {
            "tensor": (held.float() if half else held).numpy(),
            "dtype": str(held.dtype),
            "device": str(value.device),
        }
    return value


def _restored(value: Any) -> Any:
    if isinstance(value, dict) and set(value) == {"tensor", "dtype", "device"}:
        dtype = getattr(torch, str(value["dtype"]).removeprefix("torch."))
        there = torch.device(value["device"])
        device = there if there.type != "cuda" or torch.cuda.is_available() else torch.device("cpu")
        return torch.from_numpy(np.array(value["tensor"])).to(device=device, dtype=dtype)
    return value
