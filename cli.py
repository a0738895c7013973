"""The command line: all commands under one name, and how every one of them fails.

A failure that a person can act on is one line and an exit code: 1 failure, 2 usage, 3 done with
some failures. `--debug`, anywhere on the line, shows the traceback. The commands themselves are in
`commands`.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from . import __version__, console
from .commands import ablate, bench, both, cache, datasets, decode, extract, pretrain, report, slurm
from .commands import checking as _checking  # noqa: F401 - adds itself to `cache`
from .commands import status as _status  # noqa: F401 - adds itself to `cache`
from .commands import transfer as _transfer  # noqa: F401 - adds itself to `cache`
from .commands.shared import ask_for_large_pages, choose_thread_waiting

EXIT_INTERRUPTED = 130


class OneLineErrors(TyperGroup):
    """A command group whose failures are one line on standard error and an exit code."""

    def main(self, args: Sequence[str] | None = None, *rest: Any, **extra: Any) -> Any:
        given = list(sys.argv[1:] if args is None else args)
        debug = "--debug" in given
        extra["standalone_mode"] = False
        try:
            code = super().main([a for a in given if a != "--debug"], *rest, **extra)
        except (Exception, KeyboardInterrupt) as error:
            if debug:
                raise
            sys.exit(_report(error))
        if code == EXIT_INTERRUPTED:  # the parser has turned Ctrl-C into its exit code
            _report(KeyboardInterrupt())
        sys.exit(code if isinstance(code, int) else 0)


def _report(error: BaseException) -> int:
    """Print what went wrong, in one line; the exit code."""
    if isinstance(error, KeyboardInterrupt) or type(error).__name__ == "Abort":
        console.print_error("interrupted; the same command goes on from what it has done")
        return EXIT_INTERRUPTED
    if type(error).__name__ == "NoArgsIsHelpError":
        return 2  # the library has printed the help while it made the error
    if hasattr(error, "format_message"):  # the parser's own errors
        hint = getattr(error, "ctx", None)
        command = hint.command_path if hint is not None else "vis4mer"
        message = error.format_message().replace("Value error, ", "")  # a word of its own library
        console.print_error(f"{message} (see `{command} --help`)")
        return int(getattr(error, "exit_code", 2))
    if isinstance(error, OSError) and error.errno == errno.EPIPE:
        sys.stdout = open(os.devnull, "w")  # noqa: PTH123, SIM115 - `| head` closed the pipe
        return 1
    if hasattr(error, "exit_code"):  # Vis4merError
        console.print_error(str(error))
        return int(error.exit_code)
    if isinstance(error, (OSError, MemoryError)) or _is_out_of_memory(error):
        console.print_error(f"{error} ({type(error).__name__}); --debug shows where")
        return 1
    console.print_error(
        f"unexpected {type(error).__name__}: {error}; this is a bug: please report it with the "
        "output of the same command and --debug"
    )
    return 1


def _is_out_of_memory(error: BaseException) -> bool:
    """Of torch's own errors, which are no MemoryError: on a GPU, and on a CPU by its words."""
    return type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in str(error)


app = typer.Typer(
    cls=OneLineErrors,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Long-video classification in two stages: `extract` runs a frozen backbone over every "
    "video once and caches its tokens; `train-decoder` trains temporal decoders from the cache.",
)


def _version(wanted: bool) -> None:
    if wanted:
        console.print_line(f"vis4mer {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[  # noqa: ARG001 - its callback has acted on it
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Global options; --debug shows the traceback of an error."""
    choose_thread_waiting()
    ask_for_large_pages()


app.command()(extract.extract)
app.command()(extract.label)
app.command(
    cls=slurm.KeepsDashes,
    context_settings=slurm.PASS_ON,
    options_metavar="VIDEO… [OPTIONS] [OPTIONS OF EXTRACT]",
)(slurm.slurm)
app.add_typer(datasets.app, name="datasets")
app.add_typer(cache.app, name="cache")
app.command()(pretrain.pretrain)
app.command()(decode.train_decoder)
app.command()(decode.import_weights)
app.command()(decode.evaluate)
app.command()(report.report)
app.command()(decode.decoders)
app.command()(ablate.ablate)
app.command()(bench.bench)
app.command()(both.predict)
app.command()(both.demo)
app.command()(both.doctor)


def main() -> None:
    """Entry point of the `vis4mer` command."""
    app()
