"""What a skill is: its name, its batches, its results. The decorator checks all of it where it is written.

`Spec` is what the agent tells the node in HELLO. A skill is a class with `run(batch)` and, if it likes, `load()`; or a
plain function of a batch.
"""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any, Literal, TypeVar, Union, cast

from ._layout import BATCH_MAX
from ._numpy import numpy_for
from ._units import Duration, nanoseconds, whole

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ._batch import Batch

#: Longest payload and longest result of any task.
TASK_LEN_MAX = 16 << 20
#: Room for the reason of a task that fails, where results are shorter.
REASON_ROOM = 256
#: Attribute of a decorated class or function that holds its `Spec`.
SPEC = "__ramjet_spec__"

_NAME = re.compile(r"[a-z0-9._-]{1,64}")

S = TypeVar("S", bound=Callable[..., Any])


@dataclass(frozen=True)
class Out:
    """Results of one fixed size: an array of `shape` for each task. Made by `f32(384)` and its siblings."""

    #: numpy's name of the element, little-endian: ``"<f4"``.
    dtype: str
    #: Bytes of one element.
    itemsize: int
    #: Shape of one task's result.
    shape: tuple[int, ...]

    @property
    def stride(self) -> int:
        """Bytes of one task's result."""
        return self.itemsize * prod(self.shape)

    def unpack(self, result: bytes) -> NDArray[Any]:
        """One task's result as a read-only array, without a copy.

        Raises:
            ValueError: it has another length.
        """
        if len(result) != self.stride:
            raise ValueError(f"a result of {len(result)} bytes, {self.dtype}{list(self.shape)} has {self.stride}")
        return cast("NDArray[Any]", numpy_for("Out.unpack").frombuffer(result, self.dtype).reshape(self.shape))

    def stack(self, results: list[bytes]) -> NDArray[Any]:
        """The results of many tasks as one array, a row for each.

        Raises:
            ValueError: one of them has another length.
        """
        wrong = next((i for i, result in enumerate(results) if len(result) != self.stride), None)
        if wrong is not None:
            raise ValueError(
                f"result {wrong} has {len(results[wrong])} bytes, {self.dtype}{list(self.shape)} has {self.stride}"
            )
        flat = numpy_for("Out.stack").frombuffer(b"".join(results), self.dtype)
        return cast("NDArray[Any]", flat.reshape((len(results), *self.shape)))


def _out(dtype: str, itemsize: int) -> Callable[..., Out]:
    def shaped(*shape: int) -> Out:
        if not shape:
            raise ValueError("an output has a shape, as in f32(384)")
        for extent in shape:
            whole("shape", extent, 1, TASK_LEN_MAX)
        out = Out(dtype, itemsize, tuple(shape))
        whole("out: bytes of a result", out.stride, 1, TASK_LEN_MAX)
        return out

    shaped.__doc__ = f"Fixed-size results of numpy type ``{dtype}``: the arguments are the shape of one task's."
    return shaped


f16 = _out("<f2", 2)
f32 = _out("<f4", 4)
f64 = _out("<f8", 8)
u8 = _out("|u1", 1)
i8 = _out("|i1", 1)
i32 = _out("<i4", 4)
i64 = _out("<i8", 8)


@dataclass(frozen=True)
class Spec:
    """What a skill promises, checked."""

    name: str
    max_batch: int
    max_wait_us: int
    max_work: int
    work: str
    out: Out | None
    #: Longest result, in bytes.
    result_len: int
    #: What the arena has for each task: that, and at least room for the reason of one that fails.
    result_len_max: int
    idempotent: bool
    stall_s: int
    max_payload: int

    @property
    def result_stride(self) -> int:
        """Bytes of each result where the node is told that all have the same; 0 where it is not.

        A short fixed size is not told: the reason of a task that fails needs more room than it has.
        """
        return self.out.stride if self.out is not None and self.out.stride >= REASON_ROOM else 0

    def hello(self, sdk: str) -> dict[str, Any]:
        """The members of HELLO."""
        return {
            "skill": self.name,
            "max_batch": self.max_batch,
            "max_wait_us": self.max_wait_us,
            "max_work": self.max_work,
            "work": self.work,
            "result_len_max": self.result_len_max,
            "result_stride": self.result_stride,
            "idempotent": self.idempotent,
            "stall_s": self.stall_s,
            "max_payload": self.max_payload,
            "sdk": sdk,
            "pid": os.getpid(),
        }


def skill(
    name: str,
    *,
    max_batch: int = 1,
    max_wait: Duration = 0,
    max_work: int | None = None,
    work: Literal["items", "bytes"] = "items",
    out: Union[Out, int] = 4_096,
    idempotent: bool = False,
    stall: Duration = "30s",
    max_payload: int = 1 << 20,
) -> Callable[[S], S]:
    """Makes a class or a function a skill.

    Args:
        name: what requesters ask for: 1 to 64 of ``[a-z0-9._-]``.
        max_batch: most tasks of one batch, 1 to 4,096.
        max_wait: how long the oldest task of a batch may wait for more, up to 10 s. A deadline closes it sooner.
        max_work: most work units of one batch; None for no bound.
        work: what a task's work units are: ``"items"``, one each, or ``"bytes"``, the length of its payload.
        out: ``f32(384)`` and its siblings for results of one fixed size, else the longest result in bytes.
        idempotent: whether a task may run again after the process died with it.
        stall: how long one batch may take before the process counts as stuck.
        max_payload: longest payload in bytes.

    Raises:
        ValueError, TypeError: an argument is out of bounds; the text names it.
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ValueError(f"skill {name!r} must be 1 to 64 of [a-z0-9._-]")
    if work not in ("items", "bytes"):
        raise ValueError(f"work: {work!r} must be 'items' or 'bytes'")
    longest = out.stride if isinstance(out, Out) else whole("out: bytes of a result", out, 1, TASK_LEN_MAX)
    # Results that fill an array leave no room between them: there a reason finds its own behind them.
    beside = longest if isinstance(out, Out) and longest < REASON_ROOM else 0
    spec = Spec(
        name=name,
        max_batch=whole("max_batch", max_batch, 1, BATCH_MAX),
        max_wait_us=nanoseconds("max_wait", max_wait, 0, 10_000_000_000) // 1_000,
        max_work=0 if max_work is None else whole("max_work", max_work, 1, (1 << 63) - 1),
        work=work,
        out=out if isinstance(out, Out) else None,
        result_len=longest,
        result_len_max=max(longest, REASON_ROOM) + beside,
        idempotent=bool(idempotent),
        stall_s=-(-nanoseconds("stall", stall, 1_000_000_000, 86_400_000_000_000) // 1_000_000_000),
        max_payload=whole("max_payload", max_payload, 1, TASK_LEN_MAX),
    )

    def decorate(target: S) -> S:
        if inspect.isclass(target) and not callable(getattr(target, "run", None)):
            raise TypeError(f"{target.__name__}: a skill has a method run(self, batch)")
        if not callable(target):
            raise TypeError(f"{target!r} is neither a class nor a function")
        setattr(target, SPEC, spec)
        return target

    return decorate


class Model:
    """A skill made ready to run: its spec, its instance, whether it is loaded."""

    def __init__(self, target: Any) -> None:
        spec = getattr(target, SPEC, None)
        if not isinstance(spec, Spec):
            name = getattr(target, "__name__", type(target).__name__)
            raise TypeError(f'{name} is no skill: put @ramjet.skill("name", …) above it')
        self.spec = spec
        instance: Any = target() if inspect.isclass(target) else target
        self.run: Callable[[Batch], Any] = instance.run if hasattr(instance, "run") else instance
        self._load: Callable[..., Any] | None = getattr(instance, "load", None)

    def load(self, device: str | None) -> None:
        """Calls the skill's `load` once, with the device if it asks for one."""
        if self._load is None:
            return
        load, self._load = self._load, None
        if "device" in inspect.signature(load).parameters:
            load(device=device or default_device())
        else:
            load()


def default_device() -> str:
    """Where a model should lie: `RAMJET_DEVICE`, else ``"cuda"`` if this process may see an NVIDIA GPU, else ``"cpu"``."""
    named = os.environ.get("RAMJET_DEVICE")
    if named:
        return named
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    hidden = visible is not None and visible.strip() in ("", "-1")
    return "cuda" if os.path.exists("/dev/nvidiactl") and not hidden else "cpu"
