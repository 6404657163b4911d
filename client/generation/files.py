"""Every generated file of the client, by its path below `client/`."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from generation import optimizer_classes, torch_classes
from generation.option_types import group_options_module, job_options_module

CLIENT = Path(__file__).resolve().parent.parent
DECLARATIONS = "declarations.json"
_CLASSES, _TORCH_CLASSES = "optd/algorithms", "optd/torch/algorithms"
_BY_HAND = (f"{_CLASSES}/lbfgs_base.py", f"{_CLASSES}/unknown_options.py")


def generated(declarations: Mapping[str, Any]) -> dict[str, str]:
    """Return the text of each file that follows from the server's declarations."""
    algorithms, of_groups = declarations["algorithms"], declarations["group_options"]
    files = {
        DECLARATIONS: json.dumps(declarations, indent=2, ensure_ascii=False, allow_nan=False) + "\n",
        "optd/options/group_options.py": group_options_module(of_groups),
        "optd/options/job_options.py": job_options_module(declarations["job_options"]),
        f"{_CLASSES}/__init__.py": optimizer_classes.init_module(algorithms),
        f"{_TORCH_CLASSES}/__init__.py": torch_classes.init_module(algorithms),
    }
    for name, algorithm in algorithms.items():
        files[f"{_CLASSES}/{name}.py"] = optimizer_classes.optimizer_module(name, algorithm, of_groups)
        files[f"{_TORCH_CLASSES}/{name}.py"] = torch_classes.torch_module(name, algorithm, of_groups)
    return files


def stale(wanted: Mapping[str, str], client: Path = CLIENT) -> list[str]:
    """Return the generated files that are missing, that differ, or that no declaration stands behind any more."""
    present = {
        str(path.relative_to(client))
        for folder in (_CLASSES, _TORCH_CLASSES)
        for path in (client / folder).glob("*.py")
    }
    differing = {name for name, text in wanted.items() if _text(client / name) != text}
    return sorted(differing | (present - wanted.keys() - set(_BY_HAND)))


def write(wanted: Mapping[str, str], client: Path = CLIENT) -> None:
    """Write the generated files, and delete those that no declaration stands behind any more."""
    for name in stale(wanted, client):
        path = client / name
        if name not in wanted:
            path.unlink()
            continue
        path.parent.mkdir(exist_ok=True)
        path.write_text(wanted[name])


def _text(path: Path) -> str | None:
    return path.read_text() if path.exists() else None
