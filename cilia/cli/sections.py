"""Commands with so many flags that help needs headings, and flags whose order counts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from typer.core import TyperCommand, TyperGroup, TyperOption
from typer.main import get_param_completion

OPTIONS = "Options"


def option(
    panel: str,
    declarations: Sequence[str],
    text: str,
    *,
    keep: Callable[[Any, Any, Any], Any],
    multiple: bool = False,
    switch: bool = False,
    complete: Callable[..., Any] | None = None,
    **more: Any,
) -> TyperOption:
    """A flag that is no parameter of the command's function: `keep(context, parameter, value)` gets it.
    Two names with a slash between them are the yes and the no of a switch that may be left open."""
    choice = "/" in declarations[0]
    return TyperOption(
        param_decls=list(declarations),
        help=text,
        callback=keep,
        multiple=multiple,
        is_flag=True if switch or choice else None,
        default=False if switch else None,
        expose_value=False,
        autocompletion=get_param_completion(complete) if complete else None,
        rich_help_panel=panel,
        **more,
    )


VALUES = {"true": True, "1": True, "false": False, "0": False}


def is_switch(parameter: Any) -> bool:
    """Whether a parameter is a flag without a value."""
    return bool(getattr(parameter, "is_flag", False))


def spelt_out(word: str, switches: Mapping[str, Any]) -> list[str]:
    """A word of a command line as Click takes it: `--tls=true` is `--tls`, `--tls=false` is left out."""
    name, equals, value = word.partition("=")
    if not equals or name not in switches or value.lower() not in VALUES:
        return [word]
    no: list[str] = switches[name].secondary_opts[:1]
    return [name] if VALUES[value.lower()] else no


class Sectioned:
    """Flags `before` and after (`more`) those that are parameters of the command's function, and help with
    all of them under headings, in the order in which the headings first occur."""

    before: Callable[[], Iterable[TyperOption]] = staticmethod(lambda: ())
    more: Callable[[], Iterable[TyperOption]] = staticmethod(lambda: ())

    get_params: Any

    def __init__(self, *arguments: Any, params: list[Any] | None = None, **named: Any) -> None:
        every = [*type(self).before(), *(params or ()), *type(self).more()]
        super().__init__(*arguments, params=every, **named)  # type: ignore[call-arg]

    def make_parser(self, ctx: Any) -> Any:
        """One that takes `--tls=true` and `--ip-translation=false`, too, as other tools have switches."""
        parser = super().make_parser(ctx)  # type: ignore[misc]
        switches = {name: each for each in self.get_params(ctx) for name in each.opts if is_switch(each)}
        parse = parser.parse_args
        parser.parse_args = lambda args: parse([word for each in args for word in spelt_out(each, switches)])
        return parser

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write them, and the commands of a group."""
        sections: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None and parameter.param_type_name == "option":
                sections.setdefault(getattr(parameter, "rich_help_panel", None) or OPTIONS, []).append(record)
        for title, records in sections.items():
            with formatter.section(title):
                formatter.write_dl(records)
        if isinstance(self, TyperGroup):
            self.format_commands(ctx, formatter)


class Ordered:
    """Remembers under ORDER which flags were typed, one entry for each time."""

    ORDER = "cilia.order"

    make_parser: Any

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse twice: Click tells the order only to who parses by hand."""
        _, _, order = self.make_parser(ctx).parse_args(args=list(args))
        ctx.meta[self.ORDER] = [parameter.name for parameter in order]
        rest: list[str] = super().parse_args(ctx, args)  # type: ignore[misc]
        return rest


class SectionedCommand(Sectioned, TyperCommand):
    """A command with headings."""


class SectionedGroup(Sectioned, TyperGroup):
    """The same for a group that is a command, too."""
