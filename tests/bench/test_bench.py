"""The harness: what it makes of rows that go well, are wrong, fail, or cannot run; and a row of each family, tiny."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from bench import command, disk, measure, report
from bench.row import MILLISECONDS, NotAvailable, Row, Side, Sides
from bench.rows import (
    ROWS,
    durability,
    encodings,
    kernels,
    latency,
    memory,
    neighbours,
    over_grpc,
    same_host,
    scale,
    sparse,
    workers,
)
from bench.sizes import FULL, TINY, arrays, count, in_words, mixed, model

FAMILIES = (kernels, same_host, over_grpc, workers, latency, neighbours, scale, memory, encodings, sparse)


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.__name__.rpartition(".")[2])
def test_a_row_of_each_family_runs(family):
    result = measure.run(family.ROWS[-1], TINY, 1)
    if result.problem.startswith("not available"):
        pytest.skip(result.problem)
    assert result.problem == ""
    assert result.ratio > 0


@pytest.mark.slow
@pytest.mark.parametrize("row", durability.ROWS, ids=lambda row: row.title(TINY))
def test_each_row_that_writes_to_a_disk_runs_and_leaves_nothing(row: Row, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    result = measure.run(row, TINY, 1)
    if result.problem.startswith("not available"):
        pytest.skip(result.problem)
    assert result.problem == ""
    assert result.ratio > 0
    assert list(tmp_path.iterdir()) == []


def test_rows_that_need_a_disk_take_no_folder_in_memory(monkeypatch):
    monkeypatch.setattr(disk, "IN_MEMORY", {disk._file_system(Path.cwd())[0], disk._file_system(Path("/tmp"))[0]})
    with pytest.raises(NotAvailable, match="no folder on a disk"), disk.folder():
        pass
    assert "set TMPDIR" in disk.fact()


class Played:
    """A side that notes its turns, and steps its weights."""

    def __init__(self, name: str, turns: list[str], step: float = 1.0, seconds: float = 2e-3) -> None:
        self.weights = np.zeros(2)
        self.side = Side(
            lambda: self._measure(name, turns, step, seconds),
            self.weights.copy,
            lambda: turns.append(f"+{name}"),
            lambda: turns.append(f"-{name}"),
        )

    def _measure(self, name: str, turns: list[str], step: float, seconds: float) -> float:
        turns.append(name)
        self.weights += step
        return seconds


def row_of(ours: Played, reference: Played, **how) -> Row:
    @contextmanager
    def build(_) -> Iterator[Sides]:
        yield Sides(ours.side, reference.side)

    return Row(name="{small} played", reference="another", build=build, **how)


def test_both_sides_take_turns_and_stand_still_out_of_turn():
    turns: list[str] = []
    result = measure.run(row_of(Played("a", turns), Played("b", turns, seconds=1e-3), aim=2.0), TINY, 3)
    assert (result.problem, result.ratio, result.met) == ("", 2.0, True)
    assert len(result.ours.values) == len(result.reference.values) == 3
    measured = turns[-24:]
    assert measured == ["+a", "a", "a", "-a", "+b", "b", "b", "-b"] * 3


@pytest.mark.parametrize(("better", "met"), [("less", False), ("more", True)])
def test_the_aim_is_a_bound_from_above_or_from_below(better: str, met: bool):
    result = measure.run(row_of(Played("a", []), Played("b", [], seconds=1e-3), aim=1.5, better=better), TINY, 1)
    assert result.met is met


@pytest.mark.parametrize(
    ("steps", "problem"),
    [
        ((1.0, 1.1), "wrong: weights differ from the reference's by up to 0.4"),
        ((0.0, 1.0), "wrong: ours: a step has not changed the weights"),
        ((1.0, 0.0), "wrong: the reference: a step has not changed the weights"),
        ((float("nan"), 1.0), "wrong: weights differ from the reference's by up to nan"),
    ],
)
def test_weights_that_are_not_the_references_are_wrong(steps: tuple[float, float], problem: str):
    result = measure.run(row_of(Played("a", [], steps[0]), Played("b", [], steps[1])), TINY, 1)
    assert (result.problem, result.failed, result.ratio) == (problem, True, None)


@pytest.mark.parametrize(
    ("error", "problem", "failed"),
    [
        (NotAvailable("no such lane"), "not available: no such lane", False),
        (RuntimeError("boom"), "failed: RuntimeError: boom", True),
    ],
)
def test_a_row_that_cannot_run_says_why(error: Exception, problem: str, failed: bool):
    @contextmanager
    def build(_) -> Iterator[Sides]:
        raise error
        yield

    result = measure.run(Row(name="x", reference="y", build=build), TINY, 1)
    assert (result.problem, result.failed) == (problem, failed)
    assert report.cells(result, FULL) == ["x", problem, "y", "-", "-", "-", "-"]


def test_the_section_is_written_between_its_markers(tmp_path: Path):
    file = tmp_path / "page.md"
    file.write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n")
    result = measure.run(row_of(Played("a", []), Played("b", []), aim=1.0), TINY, 2)
    for _ in range(2):
        report.write(file, report.section([result], FULL, "make bench", {"kernel": "K"}))
    assert file.read_text().splitlines() == [
        "before",
        report.BEGIN,
        "`make bench`",
        "",
        "- kernel: K",
        "",
        "| row | optd | reference | of the reference | ratio | aim | met |",
        "| --- | --: | --- | --: | --: | --- | --- |",
        "| 5,000 played | 2 (2 .. 2) ms | another | 2 (2 .. 2) ms | 1.00 | at most 1 | yes |",
        report.END,
        "after",
    ]
    file.write_text("no markers")
    with pytest.raises(ValueError, match="must have the lines"):
        report.write(file, "")


def test_the_page_has_the_markers():
    text = command.DOCUMENT.read_text()
    assert 0 < text.index(report.BEGIN) < text.index(report.END)


def test_rows_are_listed_and_chosen_by_name(capsys: pytest.CaptureFixture[str]):
    assert command.main(["--list"]) == 0
    titles = capsys.readouterr().out.splitlines()
    assert len(titles) == len(ROWS) == len(set(titles))
    assert "kernel: Adam, 64 M, numba / torch fused" in titles

    assert command.main(["--list", "--only", "gloo*fused"]) == 0
    assert capsys.readouterr().out.splitlines() == [title for title in titles if "gloo" in title]
    assert command.main(["--only", "nothing of this name"]) == 2


def test_models_have_as_many_elements_as_asked_for():
    for size in (FULL, TINY):
        assert count(model(size.model)) == size.model
        shapes = mixed(size.many, size.parameters)
        assert (len(shapes), count(shapes)) == (size.parameters, size.many)
        assert len({len(shape) for shape in shapes.values()}) == 2
    same = [arrays({"w": (3,)}, seed=1)["w"] for _ in range(2)]
    np.testing.assert_array_equal(*same)


@pytest.mark.parametrize(
    ("number", "words"), [(64_000_000, "64 M"), (25_600_000, "25.6 M"), (10_000, "10 k"), (5_000, "5,000"), (8, "8")]
)
def test_numbers_are_short(number: int, words: str):
    assert in_words(number) == words


@pytest.mark.parametrize(("seconds", "shown"), [(0.0123456, "12.3"), (1.2345, "1,234"), (0.5, "500"), (1e-5, "0.01")])
def test_three_digits_are_shown(seconds: float, shown: str):
    assert MILLISECONDS.show(seconds) == shown
