"""The tests of this folder run in float64."""

from tests.float64 import default_float64

__all__ = ["default_float64"]
