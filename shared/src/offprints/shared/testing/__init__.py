"""A conformance suite for losses, modules, estimators, optimizers, in the spirit of scikit-learn's own.

Each ``check_*`` takes an object and what is needed to call it, exercises it property by property, and raises an
``AssertionError`` that names the first property that fails and the values that broke it. One line per object::

    check_loss(CompSumLoss(), lambda g: (torch.randn(7, 4, generator=g), torch.randint(4, (7,), generator=g)))

Every check takes ``skip={"property": "reason"}`` for what is not promised; a property that does not exist is a
``ValueError``. The properties are listed in each check's docstring, and named by the message of a failure.

The fixtures and markers of the pytest plugin are in `offprints.shared.testing.plugin`. Importing this package imports
neither torch nor hypothesis; needs the extra ``offprints-shared[testing]``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from offprints.shared.lazy import attach

if TYPE_CHECKING:
    from offprints.shared.testing.arguments import check_arguments
    from offprints.shared.testing.errors import check_errors
    from offprints.shared.testing.estimators import check_estimator
    from offprints.shared.testing.examples import check_examples
    from offprints.shared.testing.losses import check_loss
    from offprints.shared.testing.modules import check_module
    from offprints.shared.testing.optimizers import check_optimizer
    from offprints.shared.testing.packages import check_package
    from offprints.shared.testing.samplers import check_sampler
    from offprints.shared.testing.schedules import check_schedule
    from offprints.shared.testing.splits import check_split
    from offprints.shared.testing.streaming import check_streaming
    from offprints.shared.testing.wrappers import check_wrapper

__all__ = [
    "check_arguments",
    "check_errors",
    "check_estimator",
    "check_examples",
    "check_loss",
    "check_module",
    "check_optimizer",
    "check_package",
    "check_sampler",
    "check_schedule",
    "check_split",
    "check_streaming",
    "check_wrapper",
]

_HOMES = {
    "check_arguments": "arguments",
    "check_errors": "errors",
    "check_estimator": "estimators",
    "check_examples": "examples",
    "check_loss": "losses",
    "check_module": "modules",
    "check_optimizer": "optimizers",
    "check_package": "packages",
    "check_sampler": "samplers",
    "check_schedule": "schedules",
    "check_split": "splits",
    "check_streaming": "streaming",
    "check_wrapper": "wrappers",
}

# Each check is imported on first use: the plugin must load without torch.
__getattr__, __dir__ = attach(__name__, {name: f"{__name__}.{home}" for name, home in _HOMES.items()})
