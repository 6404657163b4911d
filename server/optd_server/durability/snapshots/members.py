"""The workers of a job as a snapshot holds them."""

from optd_server.durability.v1 import snapshot_pb2 as pb
from optd_server.engine.membership.members import Member, Members
from optd_server.engine.progress import Position
from optd_wire.messages import from_message, to_message
from optd_wire.values import GroupOptions, JobVersion, PushResult


def stored_members(members: Members) -> pb.StoredMembers:
    """Return the message of all workers that a job remembers."""
    stored = pb.StoredMembers(forgotten_epoch=members.forgotten_epoch)
    for member in members:
        made = stored.members.add(
            name=member.name,
            epoch=member.epoch,
            active=member.active,
            fenced_by=member.fenced_by,
            sequence=member.sequence,
            write_id=member.write_id,
            pushes=member.pushes,
            staleness=member.staleness,
            previous_epoch=member.previous_epoch,
            previous_sequence=member.previous_sequence,
            session_id=member.session_id,
            checksum=member.checksum,
            joined=_stored(member.joined),
            last_rounds={fragment: _stored(at) for fragment, at in member.last_rounds.items()},
        )
        if member.reply is not None:
            made.reply.CopyFrom(to_message(member.reply))
        if member.written is not None:
            options, version = member.written
            made.written.CopyFrom(pb.StoredAnswer(options=map(to_message, options), version=to_message(version)))
    return stored


def members_from(stored: pb.StoredMembers) -> Members:
    """Return the workers of a message."""
    members = Members(forgotten_epoch=stored.forgotten_epoch)
    for each in stored.members:
        written = None
        if each.HasField("written"):
            options = tuple(from_message(option, GroupOptions) for option in each.written.options)
            written = options, from_message(each.written.version, JobVersion)
        members.by_name[each.name] = Member(
            name=each.name,
            epoch=each.epoch,
            active=each.active,
            fenced_by=each.fenced_by,
            sequence=each.sequence,
            reply=from_message(each.reply, PushResult) if each.HasField("reply") else None,
            write_id=each.write_id,
            written=written,
            pushes=each.pushes,
            staleness=each.staleness,
            previous_epoch=each.previous_epoch,
            previous_sequence=each.previous_sequence,
            session_id=each.session_id,
            checksum=each.checksum,
            joined=_position(each.joined),
            last_rounds={fragment: _position(each.last_rounds[fragment]) for fragment in sorted(each.last_rounds)},
        )
    return members


def _stored(at: Position) -> pb.StoredPosition:
    return pb.StoredPosition(version=at.version, rounds=at.rounds)


def _position(stored: pb.StoredPosition) -> Position:
    return Position(stored.version, stored.rounds)
