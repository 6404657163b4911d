"""Errors about messages as bytes: their fields, their frames, and how the numbers in them are encoded."""

from optd_wire.errors.base import InvalidArgument


class InvalidRequest(InvalidArgument):
    """A message is well-formed, but a field is missing or out of its bounds."""

    reason = "INVALID_REQUEST"
    template = "{problem}"


class MalformedMessage(InvalidArgument):
    """The bytes cannot be read as a message of the contract."""

    reason = "MALFORMED_MESSAGE"
    template = "the bytes are no {message}: {problem}"


class FrameOutOfRange(InvalidArgument):
    """A frame addresses elements outside its group, or elements of two dtypes."""

    reason = "FRAME_OUT_OF_RANGE"
    template = "a frame addresses elements [{start}, {stop}) of group {group}; its ranges are {ranges}"


class FrameOverlap(InvalidArgument):
    """Two frames of one call address the same element."""

    reason = "FRAME_OVERLAP"
    template = "{field} of parameter {parameter!r} is sent twice, at element {element} of group {group!r}"


class FrameLength(InvalidArgument):
    """The length of a frame's payload does not fit its count and encoding."""

    reason = "FRAME_LENGTH"
    template = "a frame of group {group} declares {count} elements of {width}, but its payload has {got} bytes"


class IncompleteParameter(InvalidArgument):
    """Frames cover only a part of a parameter, or miss one that is required."""

    reason = "INCOMPLETE_PARAMETER"
    template = "{what} of parameter {parameter!r} covers {got} of its {size} elements"


class RowOutOfRange(InvalidArgument):
    """A row id is outside the parameter."""

    reason = "ROW_OUT_OF_RANGE"
    template = "rows of parameter {parameter!r} must be in [0, {rows}), got {row}"


class RowFrameLength(InvalidArgument):
    """The length of a row frame's ids or payload does not fit its count and encoding."""

    reason = "ROW_FRAME_LENGTH"
    template = (
        "a row frame of parameter {parameter!r} declares {count} rows, so that its {what} must have {wanted}, "
        "but it has {got} bytes"
    )


class UnknownEncoding(InvalidArgument):
    """There is no encoding of this name."""

    reason = "UNKNOWN_ENCODING"
    template = "no encoding {encoding!r}; encodings are {encodings}"


class EncodingOverflow(InvalidArgument):
    """A finite number is too large for its encoding."""

    reason = "ENCODING_OVERFLOW"
    template = "{encoding} carries numbers of magnitude up to {bound}, got {value}; send them in another encoding"
