"""Encodes events as messages of `optd.storage.v1`, and decodes them. Equal events give equal bytes."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from optd_server.durability import numbers
from optd_server.durability.v1 import event_pb2 as pb
from optd_server.engine import events
from optd_server.engine.options.groups import extent_of_groups
from optd_server.engine.state import JobState
from optd_server.store.extents import Extent, extent_of, in_compute_dtype
from optd_server.store.flat import FlatBuffers
from optd_server.store.gradients import Gradient
from optd_wire.encodings.base import Buffer
from optd_wire.frames import Frame, Outgoing, encode_in_parts
from optd_wire.layout import lay_out
from optd_wire.messages import from_message, to_message
from optd_wire.policy_messages import policy_from_message
from optd_wire.v1 import tensor_pb2
from optd_wire.values import (
    WEIGHTS,
    AverageInfo,
    GroupOptions,
    GroupSpec,
    GroupState,
    JobOptions,
    JobSpec,
    OptionChange,
    ParameterSpec,
)


def encoded(event: events.Event, state: JobState | None) -> bytes:
    """Encode an event. `state` is the job's state before the event; None for `Created`.

    Copies the numbers of the event once. Blocks.
    """
    parts: list[Any] = [*encoded_in_parts(event, state)]
    return b"".join(parts)


def encoded_in_parts(event: events.Event, state: JobState | None) -> list[Buffer]:
    """Do the same as `encoded` without a copy: the parts with numbers lie where the numbers of the event lie."""
    kind, write, _ = _KINDS[type(event)]
    message = pb.Event()
    part = getattr(message, kind)
    part.SetInParent()
    frames = write(part, event, () if state is None else state.groups.extents)
    return encode_in_parts(message, frames, deterministic=True)


def decoded(data: bytes, state: JobState | None) -> events.Event:
    """Decode an event. `state` is the job's state before the event; None for `Created`.

    Raise ValueError if this version does not know the kind of the event.
    """
    message = pb.Event.FromString(data)
    kind = message.WhichOneof("kind")
    if kind is None:
        raise ValueError("an event of a kind that this version of optd does not know")
    frames = [numbers.frame_of(frame) for frame in message.frames]
    event: events.Event = _READERS[kind](getattr(message, kind), _Numbers(state, frames, message.rows))
    return event


class _Numbers:
    """The numbers of an event that is being decoded, and the state that says where they belong."""

    def __init__(self, state: JobState | None, frames: Sequence[Frame], rows: Sequence[tensor_pb2.RowFrame]) -> None:
        self.frames = frames
        self.rows = rows
        self._state = state

    @property
    def state(self) -> JobState:
        assert self._state is not None, "every event but the first one has a state before it"
        return self._state

    def of(self, field: str) -> list[Frame]:
        return [frame for frame in self.frames if frame.field == field]

    def gradient(self, message: pb.Gradient) -> Gradient:
        groups = self.state.groups
        return numbers.gradient_of(groups.extents, groups.names, message.present, self.frames, self.rows)


Extents = tuple[Extent, ...]
Frames = Iterable[Outgoing]
NO_FRAMES: Frames = ()


# Values that several events share


def _write_edits(message: pb.OptionEdits, edits: events.OptionEdits) -> None:
    for index, options in edits.groups:
        message.groups.add(group=index, options=to_message(options))
    if edits.job is not None:
        message.job.CopyFrom(to_message(edits.job))
    message.changes.extend(map(to_message, edits.changes))


def _edits(message: pb.OptionEdits) -> events.OptionEdits:
    return events.OptionEdits(
        tuple((each.group, from_message(each.options, GroupOptions)) for each in message.groups),
        from_message(message.job, JobOptions) if message.HasField("job") else None,
        tuple(from_message(each, OptionChange) for each in message.changes),
    )


def _write_pushes(message: Any, event: events.Stepped | events.RoundAdded | events.Skipped) -> None:
    for mark in event.pushes:
        message.pushes.add(
            worker=mark.worker,
            epoch=mark.epoch,
            sequence=mark.sequence,
            staleness=mark.staleness,
            known_revision=mark.known_revision,
            flush=mark.flush,
            norms=mark.norms,
            checksum=mark.checksum,
            fragment=mark.fragment,
        )
    for each in event.nonfinite:
        message.nonfinite.add(worker=each.worker, count=each.count, parameter=each.parameter, wall=each.wall)
    if event.edits:
        _write_edits(message.edits, event.edits)


def _marks(message: Any) -> tuple[events.Mark, ...]:
    return tuple(
        events.Mark(
            each.worker,
            each.epoch,
            each.sequence,
            each.staleness,
            each.known_revision,
            each.flush,
            each.norms,
            each.checksum,
            each.fragment,
        )
        for each in message.pushes
    )


def _nonfinite(message: Any) -> tuple[events.NonfiniteEntries, ...]:
    return tuple(
        events.NonfiniteEntries(each.worker, each.count, each.parameter, each.wall) for each in message.nonfinite
    )


def _write_gradient(message: pb.Gradient, gradient: Gradient, extents: Extents) -> Frames:
    message.SetInParent()
    message.present.extend(numbers.packed(gradient.presence, extents))
    return [*map(numbers.row_frame, gradient.rows), *numbers.gradient_frames(gradient, extents)]


# Steps


def _write_stepped(message: pb.Stepped, event: events.Stepped, extents: Extents) -> Frames:
    message.wall, message.begins = event.wall, event.begins
    message.norm, message.is_clipped = event.norm, event.is_clipped
    message.norms.extend(event.norms or ())
    if event.loss is not None:
        message.loss = event.loss
    _write_pushes(message, event)
    return NO_FRAMES if event.gradient is None else _write_gradient(message.gradient, event.gradient, extents)


def _read_stepped(message: pb.Stepped, given: _Numbers) -> events.Stepped:
    return events.Stepped(
        wall=message.wall,
        pushes=_marks(message),
        gradient=given.gradient(message.gradient) if message.HasField("gradient") else None,
        edits=_edits(message.edits),
        nonfinite=_nonfinite(message),
        loss=message.loss if message.HasField("loss") else None,
        begins=message.begins,
        norm=message.norm,
        is_clipped=message.is_clipped,
        norms=tuple(message.norms) or None,
    )


def _write_round(message: pb.RoundAdded, event: events.RoundAdded, extents: Extents) -> Frames:
    for weights in numbers.weights_by_group(event.weights, extents):
        message.weights.add(weights=weights)
    message.row_weights.extend(event.row_weights)
    _write_pushes(message, event)
    return _write_gradient(message.gradient, event.gradient, extents)


def _read_round(message: pb.RoundAdded, given: _Numbers) -> events.RoundAdded:
    return events.RoundAdded(
        pushes=_marks(message),
        gradient=given.gradient(message.gradient),
        weights=numbers.totals_of([each.weights for each in message.weights], given.state.groups.extents),
        row_weights=tuple(message.row_weights),
        edits=_edits(message.edits),
        nonfinite=_nonfinite(message),
    )


def _write_skipped(message: pb.Skipped, event: events.Skipped, _: Extents) -> Frames:
    message.nothing_pending = event.nothing_pending
    _write_pushes(message, event)
    return NO_FRAMES


def _read_skipped(message: pb.Skipped, _: _Numbers) -> events.Skipped:
    return events.Skipped(_marks(message), message.nothing_pending, _edits(message.edits), _nonfinite(message))


# Options, groups, state


def _write_options(message: pb.OptionsChanged, event: events.OptionsChanged, _: Extents) -> Frames:
    _write_edits(message.edits, event.edits)
    return NO_FRAMES


def _read_options(message: pb.OptionsChanged, _: _Numbers) -> events.OptionsChanged:
    return events.OptionsChanged(_edits(message.edits))


def _write_policy(message: pb.PolicyChanged, event: events.PolicyChanged, _: Extents) -> Frames:
    message.policy.CopyFrom(to_message(event.policy))
    message.changes.extend(map(to_message, event.changes))
    return NO_FRAMES


def _read_policy(message: pb.PolicyChanged, _: _Numbers) -> events.PolicyChanged:
    changes = tuple(from_message(each, OptionChange) for each in message.changes)
    return events.PolicyChanged(policy_from_message(message.policy), changes)


def _write_group(message: pb.GroupAdded, event: events.GroupAdded, _: Extents) -> Frames:
    message.spec.CopyFrom(to_message(event.spec))
    message.group = event.weights.extents[0].first_group
    return numbers.everything(WEIGHTS, event.weights)


def _read_group(message: pb.GroupAdded, given: _Numbers) -> events.GroupAdded:
    spec = from_message(message.spec, GroupSpec)
    weights = FlatBuffers([extent_of_groups([spec], given.state.groups.algorithm.name, message.group)])
    return events.GroupAdded(spec, numbers.filled(weights, WEIGHTS, [spec.name], given.frames))


def _write_state(message: pb.StateReplaced, event: events.StateReplaced, _: Extents) -> Frames:
    message.worker, message.epoch, message.write_id = event.worker, event.epoch, event.write_id
    message.groups.extend(map(to_message, event.groups))
    message.averages.extend(map(to_message, event.averages))
    if event.edits:
        _write_edits(message.edits, event.edits)
    frames: list[Outgoing] = []
    for written in event.fields:
        field = message.fields.add(field=written.field)
        for layout in written.layouts or ():
            specs = [ParameterSpec(each.name, each.shape, each.dtype) for each in layout.parameters]
            field.layouts.add(parameters=map(to_message, specs))
        for group, parameter in written.parameters:
            field.parameters.add(group=group, parameter=parameter)
        frames += numbers.written(written.field, written.buffers, written.ranges)
    return frames


def _read_state(message: pb.StateReplaced, given: _Numbers) -> events.StateReplaced:
    return events.StateReplaced(
        worker=message.worker,
        epoch=message.epoch,
        write_id=message.write_id,
        groups=tuple(from_message(each, GroupState) for each in message.groups),
        averages=tuple(from_message(each, AverageInfo) for each in message.averages),
        fields=tuple(_read_field(each, given) for each in message.fields),
        edits=_edits(message.edits),
    )


def _read_field(message: pb.FieldWritten, given: _Numbers) -> events.FieldWritten:
    groups, frames = given.state.groups, given.of(message.field)
    averages = given.state.averages.kept
    layouts = [
        lay_out([from_message(parameter, ParameterSpec) for parameter in each.parameters]) for each in message.layouts
    ]
    if layouts:
        buffers = FlatBuffers([extent_of(layouts)])
    elif message.field == WEIGHTS or message.field in averages:
        buffers = FlatBuffers(groups.extents)
    else:
        buffers = FlatBuffers(in_compute_dtype(groups.extents))
    sink = numbers.sink(buffers, message.field, groups.names, frames)
    return events.FieldWritten(
        message.field,
        tuple(layouts) or None,
        buffers,
        tuple(sink.ledger.written()),
        tuple((each.group, each.parameter) for each in message.parameters),
    )


# Workers, and the job as a whole


def _write_joined(message: pb.Joined, event: events.Joined, _: Extents) -> Frames:
    message.worker, message.epoch, message.session_id = event.worker, event.epoch, event.session_id
    return NO_FRAMES


def _read_joined(message: pb.Joined, _: Any) -> events.Joined:
    return events.Joined(message.worker, message.epoch, message.session_id)


def _write_left(message: pb.Left, event: events.Left, _: Extents) -> Frames:
    message.worker, message.epoch = event.worker, event.epoch
    return NO_FRAMES


def _write_expired(message: pb.Expired, event: events.Expired, _: Extents) -> Frames:
    message.worker, message.epoch, message.why = event.worker, event.epoch, event.why
    return NO_FRAMES


def _write_fenced(message: pb.Fenced, event: events.Fenced, _: Extents) -> Frames:
    message.why, message.epochs, message.revisions = event.why, event.epochs, event.revisions
    return NO_FRAMES


def _write_created(message: pb.Created, event: events.Created, _: Extents) -> Frames:
    message.spec.CopyFrom(to_message(event.spec))
    message.policy.CopyFrom(to_message(event.policy))
    message.id, message.wall, message.first_epoch = event.id, event.wall, event.first_epoch
    return numbers.everything(WEIGHTS, event.weights)


def _read_created(message: pb.Created, given: _Numbers) -> events.Created:
    spec = from_message(message.spec, JobSpec)
    weights = FlatBuffers([extent_of_groups(spec.groups, spec.algorithm)])
    names = [group.name for group in spec.groups]
    return events.Created(
        spec=spec,
        policy=policy_from_message(message.policy),
        id=message.id,
        wall=message.wall,
        first_epoch=message.first_epoch,
        weights=numbers.filled(weights, WEIGHTS, names, given.frames),
    )


def _write_deleted(_: pb.Deleted, __: events.Deleted, ___: Extents) -> Frames:
    return NO_FRAMES


_KINDS: dict[type[Any], tuple[str, Callable[[Any, Any, Extents], Frames], Callable[[Any, _Numbers], Any]]] = {
    events.Created: ("created", _write_created, _read_created),
    events.GroupAdded: ("group_added", _write_group, _read_group),
    events.Joined: ("joined", _write_joined, _read_joined),
    events.Left: ("left", _write_left, lambda message, _: events.Left(message.worker, message.epoch)),
    events.Expired: (
        "expired",
        _write_expired,
        lambda message, _: events.Expired(message.worker, message.epoch, message.why),
    ),
    events.Fenced: (
        "fenced",
        _write_fenced,
        lambda message, _: events.Fenced(message.why, message.epochs, message.revisions),
    ),
    events.OptionsChanged: ("options_changed", _write_options, _read_options),
    events.PolicyChanged: ("policy_changed", _write_policy, _read_policy),
    events.StateReplaced: ("state_replaced", _write_state, _read_state),
    events.RoundAdded: ("round_added", _write_round, _read_round),
    events.Stepped: ("stepped", _write_stepped, _read_stepped),
    events.Skipped: ("skipped", _write_skipped, _read_skipped),
    events.Deleted: ("deleted", _write_deleted, lambda _, __: events.Deleted()),
}
"""By event: the field of the message `Event` that holds it, and the functions that write and read it."""
_READERS = {kind: read for kind, _, read in _KINDS.values()}
