import io

from rich.console import Console

from optd.ctl.tables import Column, facts, table

COLUMNS = [
    Column("name"),
    Column("count", number=True),
    Column("size", number=True, spare=True),
    Column("lane", spare=True),
]
ROWS = [["layers.0/weight", "1,234", "16 MiB", "grpc"], ["b", "5", "1 B", "[red]shm"]]


def printed(width: int, view: object) -> list[str]:
    sink = io.StringIO()
    Console(file=sink, width=width, markup=False, highlight=False).print(view)
    return [line.rstrip() for line in sink.getvalue().splitlines()]


def test_columns_stand_below_their_titles():
    assert printed(80, table(COLUMNS, ROWS)) == [
        "name             count    size  lane",
        "layers.0/weight  1,234  16 MiB  grpc",
        "b                    5     1 B  [red]shm",
    ]


def test_where_it_is_narrow_the_last_spare_column_goes_first():
    assert printed(34, table(COLUMNS, ROWS))[0] == "name             count    size"
    assert printed(25, table(COLUMNS, ROWS))[0] == "name             count"


def test_where_it_is_too_narrow_names_are_folded_and_numbers_are_not():
    assert printed(17, table(COLUMNS, ROWS)) == ["name        count", "layers.0/w  1,234", "eight", "b               5"]


def test_what_servers_say_cannot_move_the_cursor():
    assert printed(80, table([Column("worker")], [["\x1b[2Jgone"]])) == ["worker", "\\x1b[2Jgone"]
    assert printed(80, facts([("worker", "\x1b[2Jgone")])) == ["worker  \\x1b[2Jgone"]
