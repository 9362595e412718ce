"""A paper for the tests of the command line; installed into a temporary site by the fixture ``site``."""

__all__ = ["fit"]
__all__ += ["Line"]
