"""Who may import whom: the layers, read from the source with `ast`."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "ssl_fast"
LEVEL = {
    "config": 0, "distributed": 0,
    "ops": 1,
    "optim": 2, "data": 2, "models": 2,
    "methods": 3, "dropin": 3,
    "train": 4, "eval": 4, "export": 4,
}  # fmt: skip
DROP_IN = {"ops", "optim", "distributed", "dropin"}  # need torch alone
DROP_IN_MAY_IMPORT = {"torch", "triton", "ssl_fast"}
FILES = sorted(PACKAGE.rglob("*.py"))


def part_of(file: Path) -> str:
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(file: Path) -> Iterator[str]:
    """Dotted names of everything a file imports, also inside functions."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            here = ["ssl_fast", *file.relative_to(PACKAGE).parts[:-1]]
            base = ".".join(here[: len(here) - node.level + 1]) + "." if node.level else ""
            module = f"{node.module}." if node.module else ""
            yield from (f"{base}{module}{alias.name}" for alias in node.names)


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(PACKAGE)))
def test_a_file_imports_only_lower_levels_and_its_own_part(file: Path) -> None:
    part = part_of(file)
    if part in ("__init__", "__main__"):
        return
    for name in imported(file):
        parts = name.split(".")
        if parts[0] != "ssl_fast" or len(parts) < 2 or parts[1].startswith("_") or parts[1] == part:
            continue
        assert LEVEL[parts[1]] < LEVEL[part], f"{part} (level {LEVEL[part]}) imports {name}"
        if part == "dropin":
            assert parts[1] in DROP_IN, f"{part} imports {name}"
        if part == "methods" and parts[1] == "data":
            assert parts[2] in ("views", "view_presets"), f"methods import of data only views, not {name}"


@pytest.mark.parametrize("part", sorted(DROP_IN))
def test_drop_in_parts_need_torch_alone(part: str) -> None:
    import sys

    for file in (f for f in FILES if part_of(f) == part):
        others = {name.split(".")[0] for name in imported(file)} - DROP_IN_MAY_IMPORT - set(sys.stdlib_module_names)
        assert not others, f"{file.name} imports {others}"


def test_every_part_of_the_package_has_a_level() -> None:
    parts = {part_of(file) for file in FILES} - {"__init__", "__main__"}
    assert parts <= set(LEVEL), f"no level for {parts - set(LEVEL)}"


def test_recipes_and_tests_are_imported_by_nobody() -> None:
    for file in FILES:
        assert not {name.split(".")[0] for name in imported(file)} & {"recipes", "tests", "benchmarks"}, file


def test_files_stay_short() -> None:
    long = [(str(f.name), n) for f in FILES if (n := len(f.read_text().splitlines())) > 400]
    assert not long
