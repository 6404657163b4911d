"""The table of error reasons in `README.md`, made from `optd_wire.errors`."""

from pathlib import Path
from string import Formatter

from optd_wire.errors import BY_REASON, OptdError

README = Path(__file__).resolve().parent / "README.md"
BEGIN = "<!-- Written by `make proto` from optd_wire/errors. -->\n"
END = "<!-- end -->\n"


def with_table(text: str) -> str:
    """`text` with a current table between its marks."""
    before, _, rest = text.partition(BEGIN)
    _, mark, after = rest.partition(END)
    if not mark:
        raise SystemExit(f"{README}: the marks of the table of reasons are missing")
    rows = "".join(_row(error) for _, error in sorted(BY_REASON.items()))
    return f"{before}{BEGIN}| reason | code | metadata | meaning |\n|---|---|---|---|\n{rows}{END}{after}"


def _row(error: type[OptdError]) -> str:
    keys = dict.fromkeys(name for _, name, _, _ in Formatter().parse(error.template) if name)
    meaning = " ".join((error.__doc__ or "").split())
    return f"| `{error.reason}` | `{error.code.name}` | {', '.join(f'`{key}`' for key in keys)} | {meaning} |\n"
