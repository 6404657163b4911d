"""Places for checkpoints: each is there whole or not at all, whatever ends the writing."""

import uuid
from pathlib import Path

import fsspec
import pytest

from optd.checkpoints.place import Place, RemotePlace, place_of
from optd_wire.checkpoint_format import MANIFEST, manifest_text
from optd_wire.errors import CheckpointExists, InvalidRequest, NoCheckpoint, PlaceUnusable

TENSORS = "weights-small.safetensors"
EMPTY = manifest_text({TENSORS: {"bytes": 4, "checksum": ""}}, {})


@pytest.fixture(params=["folder", "file URL", "memory", "fsspec's local files"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    """A place in a folder that is there; the place itself is not."""
    match request.param:
        case "folder":
            return place_of(tmp_path / "best")
        case "file URL":
            return place_of(f"file://{tmp_path}/best")
        case "memory":
            return place_of(f"memory://{uuid.uuid4().hex}/best")
        case _:
            return RemotePlace(fsspec.filesystem("file"), f"{tmp_path}/best", "best")


def write(place: Place, content: bytes = EMPTY, *, overwrite: bool = False) -> None:
    with place.writing(overwrite=overwrite) as unfinished:
        for name, data in ((TENSORS, b"1234"), (MANIFEST, content)):
            with unfinished.open(name) as file:
                file.write(data)


def content(place: Place, name: str = MANIFEST) -> bytes:
    with place.open(name) as file:
        return file.read()


def test_what_is_written_is_there(place: Place):
    assert not place.is_there()
    write(place)
    assert place.is_there()
    assert (content(place), place.size(TENSORS)) == (EMPTY, 4)


def test_it_is_not_there_before_it_is_whole(place: Place):
    with place.writing(overwrite=False) as unfinished:
        with unfinished.open(TENSORS) as file:
            file.write(b"1234")
        assert not place.is_there()
        with unfinished.open(MANIFEST) as file:
            file.write(b"{}")
    assert place.is_there()


def test_nothing_is_left_of_one_that_breaks_off(place: Place):
    def breaks() -> None:
        with place.writing(overwrite=False) as unfinished:
            with unfinished.open(TENSORS) as file:
                file.write(b"12")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        breaks()
    assert not place.is_there()
    for name in (TENSORS, MANIFEST):
        with pytest.raises(NoCheckpoint, match=name):
            place.open(name)
    write(place)
    assert place.is_there()


def test_one_that_is_there_stays(place: Place):
    write(place, b"old")
    with pytest.raises(CheckpointExists, match="has a checkpoint"):
        write(place, b"new")
    assert content(place) == b"old"


def test_one_that_is_there_is_replaced_if_that_is_asked_for(place: Place):
    write(place, b"old")
    write(place, b"new", overwrite=True)
    assert content(place) == b"new"


def test_an_older_one_of_this_machine_outlives_a_newer_one_that_breaks_off(tmp_path: Path):
    place = place_of(tmp_path / "best")
    write(place, b"old")

    def breaks() -> None:
        with place.writing(overwrite=True):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        breaks()
    assert content(place) == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["best"]


def test_an_older_one_outlives_a_newer_one_that_is_refused(place: Place):
    """As a server does that has no such version."""
    write(place, b"old")

    def refused() -> None:
        with place.writing(overwrite=True):
            raise ValueError

    with pytest.raises(ValueError, match=""):
        refused()
    assert content(place) == b"old"


def test_what_else_lies_beside_a_checkpoint_stays(tmp_path: Path):
    place = place_of(tmp_path / "best")
    write(place)
    (tmp_path / "best" / "notes").write_text("mine")
    place.remove()
    assert [path.name for path in (tmp_path / "best").iterdir()] == ["notes"]


def test_a_folder_that_is_no_checkpoint_is_never_replaced(tmp_path: Path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter").write_text("all")
    with pytest.raises(CheckpointExists, match="something else than a checkpoint"):
        write(place_of(tmp_path / "thesis"), overwrite=True)
    assert (tmp_path / "thesis" / "chapter").read_text() == "all"


def test_removal(place: Place):
    write(place)
    place.remove()
    assert not place.is_there()
    with pytest.raises(NoCheckpoint):
        place.remove()


def test_only_whole_ones_are_listed(tmp_path: Path):
    for parent in (place_of(tmp_path), RemotePlace(fsspec.filesystem("file"), str(tmp_path), "here")):
        for child in ("b", "a"):
            (tmp_path / child).mkdir(exist_ok=True)
        (tmp_path / "a" / MANIFEST).write_bytes(b"{}")
        (tmp_path / "unrelated").write_text("")
        assert [each.url.rpartition("/")[2] for each in parent.children()] == ["a"]


def test_a_folder_that_is_missing_is_said(tmp_path: Path):
    with pytest.raises(NoCheckpoint, match="there is no such folder"):
        place_of(tmp_path / "nowhere").children()


def test_a_protocol_that_nobody_knows_is_said():
    with pytest.raises(InvalidRequest, match="foo://x/y cannot be reached: Protocol not known: foo"):
        place_of("foo://x/y")


def test_what_the_file_system_refuses_is_said(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(PlaceUnusable, match="file/best cannot be used: file exists"):
        write(place_of(tmp_path / "file" / "best"))
