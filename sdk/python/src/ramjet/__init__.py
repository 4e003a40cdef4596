"""ramjet for Python: offer a model as a skill of a node, and have tasks done by the skills of others.

A skill, in full::

    import ramjet

    @ramjet.skill("upper", max_batch=256, max_wait="500us")
    def upper(batch):
        return [text.upper() for text in batch.texts]

    ramjet.serve(upper)

A requester, in full::

    async with ramjet.engage("upper", tasks=2) as market:
        results = await market.map(["hello", "world"], deadline="20ms")

`ramjet.local(upper).map(["hello"])` runs the skill without a network. `ramjet.Driver` has the calls of the article:
set task ready, set capabilities, accept task, submit task, wait for its result.
"""

from ._agent import VERSION as __version__
from ._batch import Batch, Result
from ._driver import AcceptedTask, Driver, TaskResult
from ._engage import Engagement, Task, Timing, engage, run
from ._local import Local, Payload, local
from ._serve import serve
from ._skill import Out, default_device, f16, f32, f64, i8, i32, i64, skill, u8
from ._units import Duration
from .errors import (
    BatchOver,
    Busy,
    Cancelled,
    Diagnosis,
    Draining,
    EngagementClosed,
    GateRefused,
    GrantEnded,
    Late,
    Lost,
    NodeError,
    NodeRefused,
    NoSkill,
    OfferError,
    OfferExpired,
    OfferRefused,
    ProtocolError,
    RamjetError,
    ReceiptDue,
    Rejected,
    TaskError,
    TaskFailed,
    TaskRefused,
    TooBig,
    ViewKept,
)

__all__ = [
    "AcceptedTask",
    "Batch",
    "BatchOver",
    "Busy",
    "Cancelled",
    "Diagnosis",
    "Draining",
    "Driver",
    "Duration",
    "Engagement",
    "EngagementClosed",
    "GateRefused",
    "GrantEnded",
    "Late",
    "Local",
    "Lost",
    "NoSkill",
    "NodeError",
    "NodeRefused",
    "OfferError",
    "OfferExpired",
    "OfferRefused",
    "Out",
    "Payload",
    "ProtocolError",
    "RamjetError",
    "ReceiptDue",
    "Rejected",
    "Result",
    "Task",
    "TaskError",
    "TaskFailed",
    "TaskRefused",
    "TaskResult",
    "Timing",
    "TooBig",
    "ViewKept",
    "__version__",
    "default_device",
    "engage",
    "f16",
    "f32",
    "f64",
    "i32",
    "i64",
    "i8",
    "local",
    "run",
    "serve",
    "skill",
    "u8",
]
