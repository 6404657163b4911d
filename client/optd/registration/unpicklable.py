"""Why an optimizer can be neither pickled nor copied."""


def belongs_to_a_session(optimizer: object) -> TypeError:
    """The error of an optimizer that is to be pickled or copied."""
    return TypeError(
        f"{type(optimizer).__name__} can be neither pickled nor copied: it belongs to a session with a server; "
        "save state_dict() instead, or copy that. In another process, construct one of the same job under another "
        "worker's name. For a copy that trains apart, construct one of another job and load the state_dict() into it"
    )
