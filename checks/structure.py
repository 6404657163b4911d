"""Checks the structure of the code: no file is too long, and no files and no folders import each other in a circle.

    python checks/structure.py                  checks everything, except what EXEMPT lists
    python checks/structure.py optd tests       checks these packages or folders, and ignores EXEMPT

An import counts wherever it stands: also under TYPE_CHECKING and inside a function.

Folders are compared where they lie side by side. In each folder, every file and every subfolder, taken with all that is
in it, is one thing, and these things must not import each other in a circle. So `apply.py` may import the subfolder
`step/`, and `step/` may import `state.py` beside it; but `step/` must not import `apply.py`, nor a folder that imports
`step/`. A folder's own `__init__.py` counts as one of its files.
"""

import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import grimp

ROOT = Path(__file__).resolve().parent.parent
MOST_LINES = 400
PACKAGES = {"optd_wire": "proto", "optd_server": "server", "optd": "client"}
"""The packages, and the folders that are their import paths."""
FOLDERS = ("proto", "server", "client", "examples", "tests", "checks")
GENERATED = ("_pb2.py", "_pb2_grpc.py")

# What is not clean yet: a file that is too long, or a package with circles, and why. An entry that is no longer needed
# fails the check too, so this table only shrinks.
EXEMPT: dict[str, str] = {
    "tests/client/transport/test_lanes.py": "one table of cases for each lane",
    "tests/client/test_lbfgs.py": "one algorithm, compared with torch in every way to call it",
    "tests/client/registration/test_local_changes.py": "one table of changes, of which each test takes its rows",
    "tests/client/torch/test_state.py": "one oracle, against which state dicts are compared",
    "tests/client/torch/test_state_view.py": "one oracle, against which the view is compared",
    "tests/client/torch/test_zero_copy.py": "one oracle, against which steps in place are compared",
    "tests/e2e/test_bad_input.py": "one table of bad input, with the message that each gets",
    "tests/e2e/test_limits.py": "one server for all limits, which takes long to start",
    "tests/e2e/test_security.py": "one set of certificates and servers",
    "tests/faults/test_lost.py": "one proxy that loses messages, and every RPC through it",
    "tests/faults/test_shared_memory.py": "one set of workers that die with their memory",
    "tests/server/engine/test_round.py": "splits when rounds/ takes shape",
    "tests/server/optim/test_step.py": "one table of steps",
    "tests/server/optim/test_torch.py": "one table of algorithms and options, compared with torch",
}

Edges = Mapping[str, Iterable[str]]


def main(names: list[str]) -> int:
    """Prints every problem; returns 1 if there is one."""
    unknown = [name for name in names if name not in PACKAGES and name not in FOLDERS]
    if unknown:
        sys.stderr.write(f"no package or folder {unknown[0]!r}; there are {', '.join([*PACKAGES, *FOLDERS])}\n")
        return 2
    exempt = {} if names else EXEMPT
    found = dict(problems(names or [*FOLDERS, *PACKAGES]))
    lines = [problem for subject, problem in found.items() if subject not in exempt]
    stale = [subject for subject in exempt if subject not in found]
    lines += [f"{subject}: clean now, remove it from EXEMPT in checks/structure.py" for subject in stale]
    sys.stderr.write("".join(f"{line}\n" for line in lines))
    return 1 if lines else 0


def problems(names: Iterable[str]) -> Iterator[tuple[str, str]]:
    """The problems of these folders and packages, each with its subject: a file or a package."""
    for name in names:
        if name in FOLDERS:
            yield from long_files(ROOT, name)
        else:
            circles = [*import_circles(name, ROOT / PACKAGES[name])]
            if circles:
                yield name, "\n".join(circles)


# Long files


def long_files(root: Path, folder: str) -> Iterator[tuple[str, str]]:
    """Each Python file below the folder that is too long, with what to do."""
    for path in sorted((root / folder).rglob("*.py")):
        lines = len(path.read_text().splitlines())
        if lines > MOST_LINES and not path.name.endswith(GENERATED):
            name = str(path.relative_to(root))
            yield name, f"{name}: {lines} lines, at most {MOST_LINES} are allowed: split it by topic"


# Circles


def import_circles(package: str, import_path: Path) -> Iterator[str]:
    """A text about each import circle of files and of folders of a package: its path, and the imports that make it.

    Also one about each file that cannot be checked.
    """
    sys.path.insert(0, str(import_path))
    try:
        graph = grimp.build_graph(package, cache_dir=None)
    finally:
        sys.path.remove(str(import_path))
    imports = {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}
    for path in sorted((import_path / package).rglob("*.py")):
        module = ".".join(path.relative_to(import_path).with_suffix("").parts).removesuffix(".__init__")
        if module not in imports:
            yield f"{module}: not seen, as a folder above it has no __init__.py"

    def described(importer: str, imported: str) -> str:
        line = graph.get_import_details(importer=importer, imported=imported)[0]
        return f"{importer}, line {line['line_number']}: {line['line_contents']}"

    for circle in circles_of_files(imports):
        yield _text("files", package, circle, [described(*pair) for pair in _pairs(circle)])
    for folder in sorted(graph.modules):
        for circle, pairs in circles_of_folders(folder, imports):
            yield _text("folders", package, circle, [described(*pair) for pair in pairs])


def _text(kind: str, package: str, circle: list[str], imports: list[str]) -> str:
    path = " -> ".join([*circle, circle[0]])
    return "\n    ".join([f"{package}: import circle of {kind}: {path}", *imports])


def circles_of_files(imports: Edges) -> list[list[str]]:
    """For each set of files that all reach one another, its shortest circle."""
    return [_shortest_circle(imports, component) for component in _components(imports)]


def circles_of_folders(folder: str, imports: Edges) -> list[tuple[list[str], list[tuple[str, str]]]]:
    """The circles of the things side by side in a folder, at least one a subfolder, and an import for each link."""
    example: dict[tuple[str, str], tuple[str, str]] = {}
    edges: dict[str, set[str]] = {}
    subfolders = {thing for module in imports if (thing := _thing_in(folder, module)) not in (None, module)}
    for importer in sorted(imports):
        for imported in sorted(imports[importer]):
            ours, theirs = _thing_in(folder, importer), _thing_in(folder, imported)
            if ours and theirs and ours != theirs:
                edges.setdefault(ours, set()).add(theirs)
                example.setdefault((ours, theirs), (importer, imported))
    circles = []
    for component in _components(edges):
        through = subfolders & component
        if through:
            circle = _shortest_circle(edges, component, through)
            circles.append((circle, [example[pair] for pair in _pairs(circle)]))
    return circles


def _thing_in(folder: str, module: str) -> str | None:
    """The file or subfolder of `folder` that a module is or lies in; the folder itself for its `__init__`."""
    if module == folder:
        return folder
    if not module.startswith(f"{folder}."):
        return None
    return f"{folder}.{module[len(folder) + 1 :].partition('.')[0]}"


def _pairs(circle: list[str]) -> list[tuple[str, str]]:
    return list(zip(circle, [*circle[1:], circle[0]], strict=True))


def _shortest_circle(edges: Edges, component: set[str], starts: Iterable[str] | None = None) -> list[str]:
    """The shortest circle within a component that goes through one of `starts`; the first by name of several."""
    return min((_circle_from(start, edges, component) for start in sorted(starts or component)), key=len)


def _circle_from(start: str, edges: Edges, component: set[str]) -> list[str]:
    paths = [[start]]
    seen: set[str] = set()
    for path in paths:  # it grows as it is walked: breadth first
        for following in sorted(edges.get(path[-1], ())):
            if following == start:
                return path
            if following in component and following not in seen:
                seen.add(following)
                paths.append([*path, following])
    raise AssertionError(f"{start} is on no circle")


def _components(edges: Edges) -> list[set[str]]:
    """The strongly connected components of more than one node (Tarjan 1972), without recursion."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    open_nodes: list[str] = []
    found: list[set[str]] = []

    def close(node: str) -> None:
        if low[node] == index[node]:
            at = open_nodes.index(node)
            if len(open_nodes) - at > 1:
                found.append(set(open_nodes[at:]))
            del open_nodes[at:]

    def enter(node: str) -> tuple[str, Iterator[str]]:
        index[node] = low[node] = len(index)
        open_nodes.append(node)
        return node, iter(sorted(edges.get(node, ())))

    for root in sorted(edges):
        work = [] if root in index else [enter(root)]
        while work:
            node, rest = work[-1]
            following = next(rest, None)
            if following is None:
                work.pop()
                close(node)
                if work:
                    low[work[-1][0]] = min(low[work[-1][0]], low[node])
            elif following not in index:
                work.append(enter(following))
            elif following in open_nodes:
                low[node] = min(low[node], index[following])
    return found


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
