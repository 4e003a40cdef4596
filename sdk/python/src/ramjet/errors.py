"""Everything that this package raises, by who is at fault.

RamjetError
├── NodeError                 the node: not there, or gone
│   └── NodeRefused           it is there and said no
├── ProtocolError             what the node sent cannot be
├── BatchOver, ViewKept       a skill held on to memory that is no longer its own
├── OfferError                no engagement came about
│   ├── OfferRefused          the registry refused; GateRefused: the polo gate
│   └── OfferExpired          nobody matched, or nobody took it in time
├── EngagementClosed          it ended before its work was done
└── TaskError                 one task
    ├── TaskFailed            it ran and failed
    ├── Rejected              it ran, and this side's own judgement rejected the result
    └── TaskRefused           it did not run: Busy, Late, TooBig, NoSkill, GrantEnded,
                              ReceiptDue, Draining, Cancelled, Lost
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class RamjetError(Exception):
    """What every error of this package is."""


class NodeError(RamjetError):
    """The node is not there, or does not serve this program."""


class NodeRefused(NodeError):
    """The node refused a command, or this program as an agent; the text says why."""


class ProtocolError(RamjetError):
    """The other end of a socket sent what cannot be. Nothing on this side mends it."""


class BatchOver(RamjetError):
    """A batch was used after `run` had returned: its memory belongs to other tasks by then."""


class ViewKept(RamjetError):
    """A skill kept a view of a batch beyond it. Copy what must outlive `run`: ``bytes(view)``, ``array.copy()``."""


class Diagnosis:
    """Why an offer found nobody: how many workers fell at each step."""

    __slots__ = ("requester_polo", "capable", "not_ready", "below_min_polo", "above_gate", "polo_needed")

    def __init__(self, members: Mapping[str, Any]) -> None:
        #: The requester's polo.
        self.requester_polo = int(members.get("requester_polo", 0))
        #: Workers that advertise the skill and pass the filters.
        self.capable = int(members.get("capable", 0))
        #: Of these, not ready for tasks or without a live connection.
        self.not_ready = int(members.get("not_ready", 0))
        #: Of these, below the offer's own `min_polo`.
        self.below_min_polo = int(members.get("below_min_polo", 0))
        #: Of these, out of reach by the polo gate.
        self.above_gate = int(members.get("above_gate", 0))
        needed = members.get("polo_needed")
        #: The least polo with which the requester would have reached one of those.
        self.polo_needed = None if needed is None else int(needed)

    def __repr__(self) -> str:
        return "Diagnosis(" + ", ".join(f"{name}={getattr(self, name)}" for name in self.__slots__) + ")"


class OfferError(RamjetError):
    """No engagement came about."""


class OfferRefused(OfferError):
    """The registry refused the offer."""

    def __init__(self, code: str, reason: str, diagnosis: Diagnosis | None = None) -> None:
        super().__init__(f"{code}: {reason}")
        #: The kind, for programs: ``"gate"``, ``"limited"``, ``"invalid"`` …
        self.code = code
        #: For people: what, the value, the bound, what would help.
        self.reason = reason
        #: How many workers fell at each step, where the registry said so.
        self.diagnosis = diagnosis


class GateRefused(OfferRefused):
    """Every capable worker's polo is above the requester's, and none has widened its gate for it."""

    @property
    def requester_polo(self) -> int | None:
        """The requester's polo."""
        return self.diagnosis.requester_polo if self.diagnosis else None

    @property
    def polo_needed(self) -> int | None:
        """The least polo with which a worker would have been reached."""
        return self.diagnosis.polo_needed if self.diagnosis else None


class OfferExpired(OfferError):
    """Nobody matched, or nobody accepted in time. It costs the requester 1 polo."""

    def __init__(self, skill: str, notified: int, polo: tuple[int, int], diagnosis: Diagnosis | None) -> None:
        told = "nobody was told" if notified == 0 else f"none of {notified} workers accepted in time"
        super().__init__(
            f"the offer of {skill!r} expired: {told}; polo {polo[0]} -> {polo[1]}; {diagnosis or 'no diagnosis'}"
        )
        #: Workers that were told of the offer.
        self.notified = notified
        #: The requester's polo before and after.
        self.polo = polo
        #: How many workers fell at each step.
        self.diagnosis = diagnosis


class EngagementClosed(RamjetError):
    """The engagement ended before its work was done."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"the engagement was closed: {reason}")
        #: A label such as ``"lost"``, ``"draining"``, ``"expired"``, ``"cancelled"``, ``"no_registry"``.
        self.reason = reason


class TaskError(RamjetError):
    """One task has no result."""


class TaskFailed(TaskError):
    """It ran and failed; the text is the worker's reason."""


class Rejected(TaskError):
    """It ran, and the `judge` of this engagement rejected its result."""

    def __init__(self, result: bytes) -> None:
        super().__init__(f"the result of {len(result)} bytes was rejected")
        #: What was rejected.
        self.result = result


class TaskRefused(TaskError):
    """It did not run. `label` is the wire's word for why."""

    label = "refused"

    def __init__(self, text: str = "") -> None:
        super().__init__(text or self.label)


class Busy(TaskRefused):
    """Too much to do. A skill raises it in `run` to refuse a whole batch, or gives it as one task's result."""

    label = "busy"


class Late(TaskRefused):
    """Its deadline passed, or would have, before it could run. A skill may give it as one task's result."""

    label = "late"


class TooBig(TaskRefused):
    """The payload, or the result it could have, is longer than the worker takes."""

    label = "too_big"


class NoSkill(TaskRefused):
    """The worker has no such skill any more."""

    label = "no_skill"


class GrantEnded(TaskRefused):
    """The tasks or the time of the grant are used up: engage with more `tasks` or a longer `duration`."""

    label = "grant_ended"


class ReceiptDue(TaskRefused):
    """Too much work without a signed receipt."""

    label = "receipt_due"


class Draining(TaskRefused):
    """The worker is shutting down."""

    label = "draining"


class Cancelled(TaskRefused):
    """This side ended the engagement first."""

    label = "cancelled"


class Lost(TaskRefused):
    """The tunnel or the worker was lost before an answer came: it may have run or not."""

    label = "lost"


#: The refusal of each label.
REFUSALS: dict[str, type[TaskRefused]] = {
    refusal.label: refusal
    for refusal in (Busy, Late, TooBig, NoSkill, GrantEnded, ReceiptDue, Draining, Cancelled, Lost)
}


def refusal(label: str) -> TaskRefused:
    """The error for a label of the wire; one that this version does not know counts as `Lost`."""
    known = REFUSALS.get(label)
    return known() if known else Lost(label)
