"""Fields of settings become a command's flags and variables."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

import pytest
import typer
import typer.main
from typer import BadParameter, Option
from typer.testing import CliRunner

from cilia.kit import flags


@dataclass(frozen=True, kw_only=True)
class Door:
    """Of a house."""

    width: Annotated[int, Option(min=1, help="In centimetres.")] = 90
    bell: Annotated[str, Option(parser=flags.one_of("ding", "dong"), help="Its sound.")] = "ding"


@dataclass(frozen=True, kw_only=True)
class Garden:
    """Around it."""

    trees: Annotated[list[str] | None, Option("--tree", help="One; repeatable.")] = None
    keeper: Annotated[str, Option(envvar="GARDENER", help="Who looks after it.")] = ""


class House:
    """A program with a flag of its own and those of its parts."""

    def __init__(self) -> None:
        self.app = typer.Typer(add_completion=False, rich_markup_mode=None)
        self.values: dict[str, Any] = {}
        self.sources: dict[str, str] = {}

        @self.app.command()
        @flags.taking([("Doors", Door), ("Outside", Garden)], variables="HOUSE_")
        def build(
            context: typer.Context, fast: Annotated[bool, Option("--fast")] = False, **values: Any
        ) -> None:
            """Build it."""
            self.values = {"fast": fast, **values}
            self.sources = flags.sources(context)

    def run(self, *words: str, **variables: str) -> tuple[int, str]:
        """Exit code and the last line said."""
        done = CliRunner().invoke(self.app, words, env=variables)
        return done.exit_code, (done.output.splitlines() or [""])[-1]


def test_values_come_from_flags_variables_and_fields() -> None:
    house = House()
    assert house.run("--fast", "--tree", "oak", "--tree", "elm", HOUSE_WIDTH="80", GARDENER="Ann") == (0, "")
    assert house.values == {
        "fast": True,
        "width": 80,
        "bell": "ding",
        "trees": ["oak", "elm"],
        "keeper": "Ann",
    }
    assert house.sources == {
        "fast": "flag",
        "width": "environment",
        "trees": "flag",
        "keeper": "environment",
    }


def test_each_flag_has_its_heading_and_its_variable() -> None:
    found = {
        option.name: (option.rich_help_panel, option.envvar)  # type: ignore[attr-defined]
        for option in typer.main.get_command(House().app).params
        if option.name not in ("fast", "help")
    }
    assert found == {
        "width": ("Doors", "HOUSE_WIDTH"),
        "bell": ("Doors", "HOUSE_BELL"),
        "trees": ("Outside", "HOUSE_TREES"),
        "keeper": ("Outside", "GARDENER"),
    }


def test_two_programs_may_share_a_part() -> None:
    """What one makes of a field is not the other's."""
    first = {each.name: each for each in flags.parameters([("One", Door)], "A_")}
    second = {each.name: each for each in flags.parameters([("Two", Door)], "B_")}
    options = [each["width"].annotation.__metadata__[0] for each in (first, second)]
    assert [(each.rich_help_panel, each.envvar) for each in options] == [
        ("One", "A_WIDTH"),
        ("Two", "B_WIDTH"),
    ]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [("--width 0", "0 is not in the range"), ("--bell clang", "must be ding or dong"), ("--roof", "No such")],
)
def test_what_is_not_understood_is_refused(words: str, sentence: str) -> None:
    code, said = House().run(*words.split())
    assert (code, sentence in said) == (2, True)


@pytest.mark.parametrize(
    ("parser", "text", "value"),
    [
        (flags.power_of_two, "4095", 4096),
        (flags.size, "2Ki", 2048),
        (flags.duration, "0", 0.0),
        (flags.period, "1H", 3600.0),
    ],
)
def test_parsers_read_text_and_leave_values_alone(
    parser: Callable[[Any], float], text: str, value: float
) -> None:
    assert parser(text) == value
    if value:
        assert parser(value) == value


@pytest.mark.parametrize(
    ("parser", "text"),
    [(flags.power_of_two, "12"), (flags.size, "1Zi"), (flags.duration, "soon"), (flags.period, "0s")],
)
def test_parsers_say_what_they_take(parser: Callable[[Any], float], text: str) -> None:
    with pytest.raises(BadParameter, match=r"must be|is no"):
        parser(text)
