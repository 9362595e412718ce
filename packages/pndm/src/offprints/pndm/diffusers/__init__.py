"""A scheduler for pipelines of the diffusers library; needs the extra `offprints-pndm[diffusers]`."""

from offprints.shared.extras import require

require("diffusers", package="pndm", extra="diffusers")

# A pipeline that loads a scheduler of this module looks for the base class here.
from diffusers.schedulers.scheduling_utils import SchedulerMixin  # noqa: E402, F401

from offprints.pndm.diffusers.scheduler import PNDMScheduler  # noqa: E402

__all__ = ["PNDMScheduler"]
