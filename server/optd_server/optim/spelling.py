"""Find the valid name nearest to an invalid one, for errors that say what was probably meant."""

import difflib
from collections.abc import Iterable, Mapping

_LONGEST = 64  # names come from outside: one as long as this is not a slip of the pen


def nearest(name: str, valid: Iterable[str], synonyms: Mapping[str, str] | None = None) -> str | None:
    """Return the valid name that `name` most likely means, or None.

    `synonyms` maps what other libraries call a thing (lower case, underscores) to what it is called here; an
    entry counts only if its target is among the valid names.
    """
    if len(name) > _LONGEST:
        return None
    folded = name.strip().lower().replace("-", "_").replace(" ", "_")
    names = list(valid)
    by_folded = {candidate.lower(): candidate for candidate in names}
    if folded in by_folded:
        return by_folded[folded]
    compact = {candidate.replace("_", ""): candidate for candidate in by_folded}
    if folded.replace("_", "") in compact:
        return by_folded[compact[folded.replace("_", "")]]
    meant = (synonyms or {}).get(folded)
    if meant in names:
        return meant
    close = difflib.get_close_matches(folded, by_folded, n=1, cutoff=0.6)
    return by_folded[close[0]] if close else None
