"""A command of the command line: reads its settings' options by their table, and refuses with one sentence.

What every command takes besides its own options acts on the process and is read here: ``--quiet``, and ``--device``
where a model is loaded.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection

from typer.core import TyperCommand, TyperGroup

from stabledllm.cli.common import OPTIONS, apply_common
from stabledllm.cli.completion import Offered, complete_setting
from stabledllm.cli.dashes import without_dashes
from stabledllm.cli.grammar import GRAMMARS, Grammar
from stabledllm.cli.help import write_settings
from stabledllm.cli.printing import remark
from stabledllm.errors import UserError
from stabledllm.plain_text import plain_text
from stabledllm.runtime.device import asked, refuse_missing
from stabledllm.runtime.launched import is_main_process

_NUMBERS = {"number": "number", "integer": "whole number"}
WORDS = "stabledllm.words"
"""Under this name a context keeps the words of a command line that is being completed."""


class Command(TyperCommand):
    """A command whose settings may be typed as ``KEY=VALUE`` and as ``--KEY VALUE``."""

    @property
    def grammar(self) -> Grammar | None:
        """The table of the command's settings; None where it has none."""
        return GRAMMARS.get(self.name)

    def parse_args(self, ctx, args: list[str]) -> list[str]:
        """Read the options that act on the process, and those of settings; the rest is the command's own."""
        if ctx.resilient_parsing:  # the shell asks for completions
            ctx.meta[WORDS] = list(args)
            return super().parse_args(ctx, [word for word in args if not word.startswith("-")])
        with _refusing(self.name):
            return super().parse_args(ctx, self._read(ctx, list(args)))

    def _read(self, ctx, words: list[str]) -> list[str]:
        settled = words[: words.index("--")] if "--" in words else words
        if {"-h", "--help"} & set(settled):
            return ["--help"]
        ctx.meta["stabledllm.literal"] = len(words) - len(settled) - 1 if "--" in words else 0
        words = apply_common(self.name, words)
        own, valued = self._own(ctx)
        if self.grammar is None:
            return words
        self._refuse_one_dash(words)
        if not any(word.startswith("--") and word.partition("=")[0] not in own for word in words):
            return words  # without the table, which takes a moment to import
        read, notes = without_dashes(words, self.grammar, [*own, *OPTIONS], valued)
        ctx.meta["stabledllm.notes"] = notes
        return read

    def _refuse_one_dash(self, words: list[str]) -> None:
        """Refuse ``-KEY``, of which click would name the first letter alone."""
        settled = words[: words.index("--")] if "--" in words else words
        for word in settled:
            name = word[1:].partition("=")[0]
            if re.fullmatch(r"-[a-zA-Z][\w.-]+(=.*)?", word) and self.grammar.named(name.replace("-", "_")):
                raise UserError(f"unknown option '-{name}'; write --{name}.")

    def invoke(self, ctx):
        """Run the command, after the notes on options that were read as a key of another name.

        Raises:
            UserError: ``--device`` names one that this machine does not have.
        """
        refuse_missing(asked())
        if is_main_process():
            for note in ctx.meta.get("stabledllm.notes", ()):
                remark(note)
        return super().invoke(ctx)

    def _own(self, ctx) -> tuple[list[str], list[str]]:
        """The command's own options, and those of them that a value follows."""
        own, valued = [], []
        for parameter in self.get_params(ctx):
            names = [name for name in (*parameter.opts, *parameter.secondary_opts) if name.startswith("-")]
            own += names
            valued += [] if getattr(parameter, "is_flag", False) else names
        return own, valued

    def collect_usage_pieces(self, ctx) -> list[str]:
        """The words of the usage line; several words in the place of one argument are not bracketed again."""
        return [re.sub(r"^\[(.* \[.*\.\.\.)\](\.\.\.)?$", r"\1", piece) for piece in super().collect_usage_pieces(ctx)]

    def format_options(self, ctx, formatter) -> None:
        """Write the command's own options, those of every command, and the table of its settings."""
        kinds: dict[str, list[tuple[str, str]]] = {"Arguments": [], "Options": []}
        for parameter in self.get_params(ctx):
            if (record := parameter.get_help_record(ctx)) is not None:
                names = record[0]
                if parameter.param_type_name == "argument":  # behind which some versions of typer name its type
                    names = re.sub(r" <[^<>]*>$", "", names)
                kinds[f"{parameter.param_type_name.title()}s"].append((names, record[1]))
        every = [option for option in OPTIONS.values() if not option.commands or self.name in option.commands]
        kinds["Options"] += [(option.shown, option.help) for option in every]
        for title, rows in kinds.items():
            if rows:
                with formatter.section(title):
                    formatter.write_dl(rows)
        if self.grammar is not None:
            write_settings(self.grammar, formatter)

    def shell_complete(self, ctx, incomplete: str) -> list:
        """What may follow ``--``: the command's own options and those of its settings."""
        common = [name for name, one in OPTIONS.items() if not one.commands or self.name in one.commands]
        own = [*super().shell_complete(ctx, incomplete), *(Offered(n) for n in common if n.startswith(incomplete))]
        if self.grammar is None:
            return own
        return own + complete_setting(self.grammar, ctx.meta.get(WORDS, []), incomplete)


class Commands(TyperGroup):
    """The commands; an unknown one is refused with the nearest."""

    def parse_args(self, ctx, args: list[str]) -> list[str]:
        """Read the options before the command."""
        with _refusing(""):
            return super().parse_args(ctx, args)

    def resolve_command(self, ctx, args: list[str]):
        """The command that was named.

        Raises:
            UserError: there is none of that name.
        """
        if args and args[0] not in self.commands and not ctx.resilient_parsing:
            raise UserError(_unknown(args[0], self.commands))
        return super().resolve_command(ctx, args)


def _unknown(name: str, known: Collection[str]) -> str:
    near = difflib.get_close_matches(name[:200], known, n=1)
    hint = f" (did you mean '{near[0]}'?)" if near else ""
    return f"unknown command '{plain_text(name)}'{hint}; 'stabledllm --help' lists them."


class _refusing:
    """While this context is open, an error of the options' own parser becomes one sentence."""

    def __init__(self, command: str):
        self.command = command

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind, error, trace) -> None:
        # Typer has carried a copy of click since 0.26, so that the class alone does not tell.
        if error is None or not hasattr(error, "format_message") or kind.__name__ == "NoArgsIsHelpError":
            return
        message = " ".join(error.format_message().split()).rstrip(".")
        message = re.sub(
            r" (?:Did you mean|\(Possible options:) '?(--[\w-]+)'?[?)]$", r" (did you mean '\1'?)", message
        )
        message = re.sub(
            r"Input should be a valid (number|integer)(, unable to parse.*)?$",
            lambda kind: f"expected a {_NUMBERS[kind[1]]}",
            message,
        )
        message = re.sub(r"Input should be (greater|less)", r"expected a number \1", message)
        message = message.replace(" (did you mean '--help'?)", "")  # which is like any short option
        what = f"{self.command}: " if self.command else ""
        help_of = f"stabledllm {self.command} --help" if self.command else "stabledllm --help"
        raise UserError(f"{what}{message[:1].lower()}{message[1:]}; '{help_of}' lists its options.") from None
