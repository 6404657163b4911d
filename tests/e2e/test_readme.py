"""README.md and the pages in docs/ are true: their programs and commands run, their names are those of the code."""

import os
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from optd import errors
from optd.local import LocalServer
from optd.session import environment
from optd_server.config import Config, load
from optd_server.optim.backends.compiled import cache as kernel_cache

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
# docs/extending.md has a test of its own, and the commands of docs/benchmarks.md are those of the benchmark.
PAGES = [
    ROOT / "README.md",
    *sorted(page for page in (ROOT / "docs").glob("*.md") if page.name not in ("extending.md", "benchmarks.md")),
]
EVERY_PAGE = [*PAGES, ROOT / "docs" / "extending.md", ROOT / "docs" / "benchmarks.md"]
README = "\n".join(page.read_text() for page in PAGES)
DEFAULT_SERVER = "127.0.0.1:50051"

BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
PROGRAMS = [block for language, block in BLOCKS if language == "python"]
COMMANDS = [line for language, block in BLOCKS if language == "sh" for line in block.splitlines()]
# A program, and what it prints, if a page shows that.
SHOWN = re.findall(r"^```python\n([^`]*)^```\n\n```text\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
OF_OTHERS = {"--read-only", "--build", "--ignore-scripts"}  # flags of docker and npm
OF_OTHERS |= {"--nnodes", "--nproc-per-node", "--max-restarts", "--rdzv-backend", "--rdzv-endpoint", "--rdzv-id"}


def run(server: LocalServer, *command: str) -> str:
    """Runs a command of the pages in the checkout, with `server` in place of the one on the default port."""
    done = subprocess.run(
        [part.replace(DEFAULT_SERVER, server.address) for part in command],
        cwd=ROOT,
        env=os.environ | {"OPTD_SERVER": server.address, "PATH": f"{BIN}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, f"{' '.join(command)}: {done.returncode}\n{done.stdout}{done.stderr}"
    return done.stdout


@cache
def help_of(*command: str) -> str:
    wide = os.environ | {"COLUMNS": "200"}
    return subprocess.run([*command, "--help"], env=wide, capture_output=True, text=True, check=True).stdout


def spans(text: str = README) -> list[str]:
    """What stands in backticks within a line."""
    return re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL))


def sections(page: Path) -> set[str]:
    """The names under which GitHub links to a page's headings."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def table(first_cell: str) -> list[list[str]]:
    """The rows of the table whose first heading is this."""
    rows = re.search(rf"^\| {re.escape(first_cell)}[^\n]*\n\|[-|]+\n((?:\|[^\n]*\n)+)", README, re.MULTILINE)
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows[1].splitlines()]


@pytest.mark.slow
@pytest.mark.parametrize("program", PROGRAMS, ids=range(len(PROGRAMS)))
def test_a_program_runs(server: LocalServer, program: str):
    output = run(server, sys.executable, "-W", "error::UserWarning", "-c", program)
    assert output == dict(SHOWN).get(program, output)


def test_what_a_program_prints_is_shown_somewhere():
    assert len(SHOWN) == 4


@pytest.mark.slow
def test_commands_for_a_running_server_work(server: LocalServer):
    # `watch` would go on until Ctrl-C, and `bench` for as long as figures take.
    script = [
        re.sub(r"^(optctl bench)$", r"\1 --seconds 0.01", re.sub(r"^(optctl watch .*)$", r"\1 --count 1", line))
        for line in COMMANDS
        if line.startswith(("python ", "optctl "))
    ]
    assert len(script) > 10
    run(server, "bash", "-euxo", "pipefail", "-c", "\n".join([*script, "wait"]))


def test_other_commands_are_known():
    words = [[word for word in line.split() if not re.match(r"[A-Z_]+=", word)] for line in COMMANDS]
    others = {line[0] for line in words} - {"python", "optctl"}
    assert others == {"make", "source", "optd", "docker", "openssl", "cd", "npm", "node", "torchrun"}


def test_targets_exist():
    named = re.findall(r"^make (\S+)", "\n".join([*COMMANDS, *spans()]), re.MULTILINE)
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert {"demo", "test"} <= set(named) <= set(targets)


def test_files_exist():
    links = [
        page.parent / link
        for page in EVERY_PAGE
        for link in re.findall(r"\]\((?!http)([^)#]+)(?:#[^)]*)?\)", page.read_text())
    ]
    named = re.findall(r"(?<![\w./-])(?:docker|examples|proto|tests)/[\w./-]+", README)
    made = {"docker/token"}  # by a command
    assert [path for path in {*links, *named} - made if not (ROOT / path).exists()] == []


def test_sections_of_links_exist():
    missing = [
        f"{page.name}: {path}#{section}"
        for page in EVERY_PAGE
        for path, section in re.findall(r"\]\((?!http)([^)#]*)#([^)]*)\)", page.read_text())
        if section not in sections(page.parent / path if path else page)
    ]
    assert missing == []


def test_every_page_is_reached_from_the_readme():
    linked = set(re.findall(r"\]\(docs/([\w-]+\.md)", PAGES[0].read_text()))
    assert linked == {page.name for page in (ROOT / "docs").glob("*.md")}


@pytest.mark.slow
def test_flags_exist():
    helps = [
        help_of(str(BIN / "optd")),
        help_of(sys.executable, str(ROOT / "examples" / "digits.py")),
        *(help_of(str(BIN / "optctl"), *of) for of in [(), ("group",), ("delete",), ("doctor",), ("policy",)]),
        *(help_of(str(BIN / "optctl"), "checkpoint", name) for name in ("save", "restore", "import")),
    ]
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", README))
    known = {flag for text in helps for flag in re.findall(r"--[a-z][a-z-]+", text)}
    assert named - known - OF_OTHERS == set()


def test_commands_of_optctl_exist():
    named = set(re.findall(r"optctl (?:-o json )?([a-z]+)", "\n".join([*COMMANDS, *spans()])))
    listed = set(re.findall(r"^│ ([a-z]+) {2,}", help_of(str(BIN / "optctl")), re.MULTILINE))
    assert named == listed


def test_every_setting_is_in_the_table_with_its_default():
    defaults = {}
    for flags, default, _ in table("flag"):
        for flag in re.findall(r"`--([a-z-]+)`", flags):
            defaults[flag.replace("-", "_")] = default.strip("`")
    assert list(defaults) == list(Config.model_fields)
    for name, field in Config.model_fields.items():
        stated = {"16 MiB": 16 << 20, "1024 MiB": 1 << 30}.get(defaults[name], defaults[name])
        if name in ("max_memory_bytes", "threads"):  # they depend on the machine
            assert stated in ("80 % of the machine's, or of the container's", "one for each CPU")
        elif stated == "":
            assert field.default is None
        else:
            assert (
                getattr(Config.model_validate({"data_dir": "jobs", "durability": "log", name: stated}), name)
                == field.default
            )


def test_the_settings_file_is_one(tmp_path: Path):
    (content,) = (block for language, block in BLOCKS if language == "toml")
    file = tmp_path / "optd.toml"
    file.write_text(content)
    assert load(["--config", str(file)]).lease_seconds == load(["--lease-seconds", "60"]).lease_seconds == 60


def test_environment_variables_are_read():
    named = set(re.findall(r"OPTD_[A-Z_]+", README))
    servers = {f"OPTD_{name.upper()}" for name in Config.model_fields}
    clients = set(re.findall(r"OPTD_[A-Z_]+", Path(environment.__file__).read_text()))
    kernels = set(re.findall(r"OPTD_[A-Z_]+", Path(kernel_cache.__file__).read_text()))
    assert named - servers - clients - kernels == set()
    assert clients <= named


@pytest.mark.parametrize("row", table("kind"), ids=lambda row: row[0].strip("`"))
def test_errors_are_what_the_table_says(row: list[str]):
    kind, builtin, examples = (re.findall(r"`(\w+)`", cell) for cell in row)
    base = getattr(errors, kind[0])
    assert base.__bases__[0] is errors.OptdError
    assert [parent.__name__ for parent in base.__bases__[1:]] == builtin
    assert all(issubclass(getattr(errors, name), base) for name in examples)


def test_every_kind_of_error_is_in_the_table():
    kinds = {kind.__name__ for kind in errors.OptdError.__subclasses__()}
    assert {row[0].strip("`") for row in table("kind")} == kinds
