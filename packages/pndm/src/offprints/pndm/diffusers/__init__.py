"""A scheduler for pipelines of the diffusers library; needs the extra `offprints-pndm[diffusers]`."""

from offprints.shared.extras import require

require("diffusers", package="pndm", extra="diffusers")

from offprints.pndm.diffusers.scheduler import PNDMScheduler  # noqa: E402

__all__ = ["PNDMScheduler"]
