"""The command line: every command calls one public cell.

Exit codes: 0 done, 1 the data or the run failed, 2 usage (unknown name, missing file, wrong
value), 130 interrupted (Ctrl-C, or SIGTERM). A comparison of two sides, a gate, and an acceptance
test: 0 no worse, 1 worse, 3 not enough evidence; their failures are 2, so that none is taken for a
decision.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import traceback

from ftlab._core.errors import FtlabError
from ftlab._core.text import redacted, safe

INTERRUPTED = 130
DECIDING = (["accept"], ["compare"], ["gate"])  # whose exit code 1 is a decision
# What launchers set for each process, which would make libraries wait for the others.
LAUNCHED = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def main() -> None:
    """Run the command line."""
    _take_over_launch()
    signal.signal(signal.SIGTERM, _terminated)  # of Slurm, before the time of a job is over
    failed = 2 if sys.argv[1:2] in DECIDING else 1
    try:
        from ftlab.cli.commands import app

        app()
    except SystemExit as error:  # typer turns Ctrl-C into the code 130 and loses its words
        interrupt = _interrupt_behind(error)
        if interrupt is None:
            if isinstance(error.__context__, OSError):  # such as a pipe that was closed
                sys.exit(failed)
            raise
        message = str(interrupt) or "Interrupted. The same call takes over what was finished."
        sys.exit(_report(message, INTERRUPTED))
    except KeyboardInterrupt as error:  # during the first imports
        sys.exit(_report(str(error) or "Interrupted.", INTERRUPTED))
    except FtlabError as error:
        sys.exit(_report(str(error), max(error.exit_code, failed)))
    except (ValueError, OSError) as error:
        sys.exit(_report(str(error), 2))
    except Exception as error:
        trace = "".join(traceback.format_exception(error))
        sys.exit(_report(trace, failed))


def _take_over_launch() -> None:
    """Turn `accelerate launch --num_processes 4 -m ftlab ...` into `ftlab ... --devices 4`.

    Of the processes that a launcher started, the first one does the work and starts others itself,
    which it can end and replace; the rest have nothing to do.
    """
    given = os.environ
    for name in LAUNCHED:
        if given.get(name) == "":
            del given[name]
    launched = _whole("WORLD_SIZE", 1)
    if launched == 1:
        return
    if _whole("RANK", 0):
        sys.exit(0)
    if _whole("LOCAL_WORLD_SIZE", launched) < launched:
        sys.exit(_report("One machine works on a call. Launch on one.", 2))
    if _switched_on("ACCELERATE_USE_DEEPSPEED"):
        sys.exit(_report("DeepSpeed is not used here. Leave it out; --fsdp shards, too.", 2))
    shards = _switched_on("ACCELERATE_USE_FSDP")
    for name in [*given]:
        if name in LAUNCHED or name.startswith("ACCELERATE_"):
            del given[name]
    _add_options(launched, shards)


def _add_options(launched: int, shards: bool) -> None:
    """Give the command the number of devices, and `--fsdp` where it was launched so."""
    words = sys.argv[1:]
    options = _options(words)
    given_already = any(word.startswith("--devices") for word in words)
    if not given_already and "--devices" in options:
        sys.argv += ["--devices", str(launched)]
    if shards and "--fsdp" not in options:
        sys.exit(_report("This command shards no model. Launch it without FSDP.", 2))
    if shards:
        sys.argv += ["--fsdp"]


def _switched_on(name: str) -> bool:
    """Return whether a launcher has set an environment variable to true."""
    return os.environ.get(name, "").lower() == "true"


def _whole(name: str, default: int) -> int:
    """Return an environment variable of a launcher, which is a whole number."""
    value = os.environ.get(name, str(default))
    if not value.isdigit():
        message = f"{name}={value!r} is not a whole number. Unset it, or launch again."
        sys.exit(_report(message, 2))
    return int(value)


def _options(words: list[str]) -> set[str]:
    """Return the options of the command of a cell that these words begin with."""
    from ftlab.cli.commands import CELLS, as_command

    for name in words[:1]:
        if name in CELLS:
            command = as_command(name, CELLS[name].callback())
            return {name for option in command.params for name in option.opts}
    return set()


def _terminated(*_: object) -> None:
    raise KeyboardInterrupt("Terminated (SIGTERM). The same call takes over what was finished.")


def _interrupt_behind(error: BaseException | None) -> KeyboardInterrupt | None:
    while error and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return error


def _report(text: str, code: int) -> int:
    """Print an error, free of secrets and control characters, and return the exit code."""
    with contextlib.suppress(OSError):  # stderr is closed or full: the code still tells
        print(f"ftlab: {safe(redacted(text), 20_000)}", file=sys.stderr, flush=True)
    return code
