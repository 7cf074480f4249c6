"""The documents: links lead somewhere, pictures are pictures, tables and code blocks are whole."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
PAGES = sorted([*REPOSITORY.glob("*.md"), *(REPOSITORY / "docs").rglob("*.md")])
PICTURES = sorted((REPOSITORY / "docs" / "pictures").glob("*.svg"))

_CODE = re.compile(r"^```.*?^```$", re.DOTALL | re.MULTILINE)
_INLINE = re.compile(r"`[^`\n]*`")
_LINK = re.compile(r"!?\[(?:[^\[\]]|\[[^\]]*\])*\]\(([^)\s]+)\)")
_PATH = re.compile(r"`((?:cilia|tests|bpf|docs|bench|examples|tools|deploy|proto|control)/[\w./*-]+)`")
_HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)


def anchors(page: Path) -> set[str]:
    """What can stand behind # in a link to a page."""
    titles = _HEADING.findall(_CODE.sub("", page.read_text()))
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def links(page: Path) -> list[str]:
    return _LINK.findall(_INLINE.sub("", _CODE.sub("", page.read_text())))


def name(path: Path) -> str:
    return path.name


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_somewhere(page: Path) -> None:
    dead = []
    for link in links(page):
        if "://" in link:
            continue
        place, _, anchor = link.partition("#")
        target = (page.parent / place).resolve() if place else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            dead.append(link)
    assert not dead


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_paths_are_those_of_files(page: Path) -> None:
    dead = []
    for path in _PATH.findall(page.read_text()):
        places = (path, f"{path}.py", f"cilia/{path}", f"cilia/{path}.py")
        if not any(list(REPOSITORY.glob(place.rstrip("/"))) for place in places):
            dead.append(path)
    assert not dead


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_code_blocks_end_and_tables_have_one_width(page: Path) -> None:
    text = page.read_text()
    assert text.count("\n```") % 2 == 0
    for block in re.split(r"\n\n+", _CODE.sub("", text)):
        rows = [row for row in block.splitlines() if row.startswith("|")]
        widths = {row.replace("\\|", "").count("|") for row in rows}
        assert len(widths) < 2, rows[:1]


@pytest.mark.parametrize("picture", PICTURES, ids=name)
def test_pictures_are_whole_and_load_nothing(picture: Path) -> None:
    root = ElementTree.fromstring(picture.read_text())
    assert root.tag.endswith("svg")
    assert "href=" not in picture.read_text()


def test_every_page_of_the_documents_is_found_from_the_architecture() -> None:
    start = REPOSITORY / "docs" / "architecture.md"
    linked = {link.partition("#")[0] for link in links(start)}
    pages = {page.name for page in (REPOSITORY / "docs").glob("*.md")} - {start.name}
    assert not pages - linked
