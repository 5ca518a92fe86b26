"""The documentation: its examples run, its links lead somewhere, no op is left out and no kernel is claimed in vain."""

import inspect
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

import ssl_fast
from ssl_fast.ops import dispatch

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
CONTENTS = DOCS / "README.md"
NO_OPS = {"__version__", "backends"}


def name_of(page: Path) -> str:
    return str(page.relative_to(DOCS))


def without_code(text: str) -> str:
    return re.sub(r"^```.*?^```", "", text, flags=re.S | re.M)


def examples(page: Path) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", page.read_text(), re.S | re.M)


def anchors(page: Path) -> set[str]:
    """The names that GitHub gives a page's headings."""
    headings = re.findall(r"^#+ (.+)$", without_code(page.read_text()), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", [page for page in PAGES if examples(page)], ids=name_of)
def test_examples_run(page: Path, capsys: pytest.CaptureFixture[str]) -> None:
    namespace: dict[str, object] = {"__name__": "__main__"}
    with torch.random.fork_rng(devices=[]):
        for code in examples(page):
            exec(compile(code, str(page), "exec"), namespace)
    assert capsys.readouterr().out, "an example shows what it did"


@pytest.mark.parametrize("page", sorted((DOCS / "ops").glob("*.md")), ids=name_of)
def test_every_page_has_one_example_and_is_in_the_contents(page: Path) -> None:
    assert len(examples(page)) == 1
    assert f"({name_of(page)})" in CONTENTS.read_text()


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_relative_links_resolve(page: Path) -> None:
    links = re.findall(r"\]\(([^)\s]+)\)", without_code(page.read_text()))
    for link in links:
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{name_of(page)} links to {link}"
        assert target.is_relative_to(ROOT), f"{name_of(page)} links out of the repository: {link}"
        assert not anchor or anchor in anchors(target), f"{name_of(page)} links to {link}: no such heading"


@pytest.mark.parametrize("name", sorted(set(ssl_fast.__all__) - NO_OPS))
def test_every_public_op_is_on_a_page(name: str) -> None:
    pages = "".join(page.read_text() for page in (DOCS / "ops").glob("*.md"))
    assert re.search(rf"`{name}[`(]", pages), f"no page of docs/ops names {name}: write about it"


KEYWORDS = {
    "contrastive": ["nt_xent", "dcl", "supcon"],
    "queue": ["info_nce", "MoCoQueue"],
    "two_towers": ["clip_loss", "siglip_loss"],
    "margins": ["arcface", "cosface", "combined_margin", "adaface", "curricularface", "MarginHead"],
    "self_distillation": ["dino_loss", "ibot_loss", "swav_loss", "sinkhorn", "koleo", "DINOCenter"],
    "redundancy": ["byol_loss", "simsiam_loss", "vicreg", "barlow_twins"],
    "retrieval": ["knn_topk"],
}


@pytest.mark.parametrize("page", sorted(KEYWORDS))
def test_a_page_names_every_keyword(page: str) -> None:
    text = (DOCS / "ops" / f"{page}.md").read_text()
    for op in KEYWORDS[page]:
        for name, parameter in inspect.signature(getattr(ssl_fast, op)).parameters.items():
            if parameter.default is not parameter.empty or parameter.kind is parameter.KEYWORD_ONLY:
                assert re.search(rf"`{name}\b", text), f"{page}.md does not name {name} of {op}"


@pytest.mark.parametrize("op", sorted(dispatch.OPS))
def test_the_contents_name_the_implementations_there_are(op: str) -> None:
    module = dispatch._MODULES.get(op, op)
    there = [impl for impl in dispatch.OPS[op] if find_spec(f"ssl_fast.ops.{impl}.{module}")]
    named = re.findall(rf"\| `{op}`: ([\w, ]+) \|", CONTENTS.read_text())
    assert named, f"no row of docs/README.md says which implementations {op} has"
    for cell in named:
        assert cell.split(", ") == there, f"docs/README.md and the page of {op} must say: {', '.join(there)}"


def test_tables_of_numbers_are_those_of_the_results() -> None:
    command = [sys.executable, "-m", "benchmarks.tables", "--check"]
    done = subprocess.run(command, cwd=DOCS.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
