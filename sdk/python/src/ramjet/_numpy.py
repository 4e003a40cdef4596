"""numpy where it is installed; whoever needs it and has it not is told what needs it."""

from __future__ import annotations

from typing import Any


def numpy_for(what: str) -> Any:
    """The numpy module, for `what`.

    Raises:
        ImportError: it is not installed.
    """
    try:
        import numpy
    except ImportError as error:
        raise ImportError(f"{what} needs numpy: pip install numpy") from error
    return numpy


def plain_array(value: Any) -> Any:
    """What a model returned, as a numpy array: numpy's own, a torch tensor of any device, nested lists."""
    numpy = numpy_for("a result that is an array")
    if hasattr(value, "detach"):
        value = value.detach().cpu()
    return numpy.asarray(value)
