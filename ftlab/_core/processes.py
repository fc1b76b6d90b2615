"""One piece of work shared out to processes of this machine, which report to their caller.

Each process is a fresh Python. It receives a function and its arguments, pickled, on its standard
input, and sends back what it reports, returns or raises. Processes whose caller is gone end.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterator
from typing import Any

from ftlab._core.calls import adopt, outermost
from ftlab._core.errors import FtlabError, ProcessFailed, UsageError
from ftlab._core.progress import clock
from ftlab._core.text import safe
from ftlab._core.threads import cores

WORK = "from ftlab._core.processes import work; work()"
POLL_S = 0.5
GRACE_S = 5.0  # for the last words of the other processes after one has failed
DOUBLED_S = 2.0  # within which a launcher repeats an interrupt that it passes on
REPORT, RETURN, RAISE, END = "report", "return", "raise", "end"  # kinds of messages


def python_path(*more: str) -> str:
    """Return the PYTHONPATH of a process that finds the modules which this one finds.

    Args:
        *more: Folders to look in after these.
    """
    return os.pathsep.join([*filter(None, sys.path), *more])


def signal_name(number: int) -> str:
    """Return the name of a signal, such as SIGKILL; those of real time have none."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def take_interrupts() -> None:
    """Let SIGINT and SIGTERM interrupt this process: a shell's `&` ignores one, Ray blocks it."""
    both = (signal.SIGTERM, signal.SIGINT)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, both)
    for one in both:
        signal.signal(one, signal.default_int_handler)


def share_out(
    name: str,
    function: Callable[..., Any],
    parts: list[tuple],
    on_report: Callable[[Any], None],
) -> list[Any]:
    """Call a function in one process per part, until all have returned.

    An interrupt is passed on to the processes, which may still save what they hold; a second one
    ends them. Whatever happens, none of them is left when this returns.

    Args:
        name: Of the work, for errors.
        function: Called as `function(report, *part)`, where `report(value)` sends a value back. It
            must be defined in a module.
        parts: Its arguments, a tuple for each process.
        on_report: Called in this process with each value that is reported.

    Returns:
        What each call returned, in the order of the parts.

    Raises:
        UsageError: `cannot_be_sent`, where the arguments cannot be pickled.
        FtlabError: What one of the processes raised.
        ProcessFailed: `process_failed`, `process_lost`.
    """
    sent = []
    for number, part in enumerate(parts, 1):
        place = f"process {number} of {len(parts)}"
        try:
            sent.append(pickle.dumps((place, outermost(), pickle.dumps((function, part)))))
        except (AttributeError, TypeError, pickle.PicklingError) as error:
            raise _cannot_be_sent(error) from None
    crew = _Crew(name, on_report)
    try:
        with crew.interruptible():
            crew.start(sent)
            crew.wait()
    finally:
        crew.end()
    crew.raise_failure()
    return [crew.returned[number] for number in range(len(parts))]


def _cannot_be_sent(error: Exception) -> UsageError:
    return UsageError(
        "cannot_be_sent",
        f"Other processes cannot be given this work ({safe(error, 300)}). Define the function or "
        "class in a module that can be imported, or give devices=1.",
    )


class _Crew:
    """The processes of one call, and what they have said."""

    def __init__(self, name: str, on_report: Callable[[Any], None]):
        self.name = name
        self.on_report = on_report
        self.processes: list[subprocess.Popen] = []
        self.errors: list[Any] = []  # files of what they print
        self.listeners: list[threading.Thread] = []
        self.messages: queue.Queue = queue.Queue()
        self.returned: dict[int, Any] = {}
        self.said: set[int] = set()  # processes that returned or raised something
        self.failures: list[BaseException] = []
        self.interrupts: list[float] = []  # when they came
        self.interrupted = False  # whether one was passed on

    def start(self, sent: list[bytes]) -> None:
        threads = max(cores() // len(sent), 1)
        more = {
            "FTLAB_BATCH": "1",
            "OMP_NUM_THREADS": str(threads),
            "PYTHONPATH": python_path(),
        }
        for number, data in enumerate(sent):
            errors = tempfile.TemporaryFile()  # noqa: SIM115  closed by `end`
            process = subprocess.Popen(
                [sys.executable, "-c", WORK],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env={**os.environ, **more},
                start_new_session=True,  # a terminal's Ctrl-C reaches the caller only
            )
            self.errors.append(errors)
            self.processes.append(process)
            listener = threading.Thread(target=self._listen, args=(number, data), daemon=True)
            listener.start()
            self.listeners.append(listener)

    def _listen(self, number: int, data: bytes) -> None:
        """Give a process its work, then put what it says into the queue, until it has ended."""
        process = self.processes[number]
        with contextlib.suppress(OSError):  # it has ended
            process.stdin.write(data)
            process.stdin.flush()  # and stays open: that it closes says that the caller is gone
        try:
            while True:
                kind, value = pickle.load(process.stdout)
                self.messages.put((number, kind, value))
        except EOFError:
            pass
        except Exception as error:
            if process.poll() is None and "truncated" not in str(error):
                self.messages.put((number, RAISE, self._unreadable(number, error)))
            process.kill()
        self.messages.put((number, END, process.wait()))

    def wait(self) -> None:
        """Take messages until all processes have ended, or one has failed and the rest hang."""
        waiting = set(range(len(self.processes)))
        until = None
        while waiting and (until is None or clock() < until):
            if self.interrupts:
                self._interrupt()
            try:
                number, kind, value = self.messages.get(timeout=POLL_S)
            except queue.Empty:
                continue
            if kind == END:
                waiting.discard(number)
            self._take(number, kind, value)
            if self.failures and until is None:
                until = clock() + GRACE_S

    def _take(self, number: int, kind: str, value: Any) -> None:
        if kind == REPORT:
            self.on_report(value)
        elif kind == END:
            if number not in self.said:
                self.failures.append(self._lost(number, value))
        else:
            self.said.add(number)
            if kind == RETURN:
                self.returned[number] = value
            else:
                self.failures.append(value)

    def _unreadable(self, number: int, error: Exception) -> ProcessFailed:
        place = f"process {number + 1} of {len(self.processes)}"
        why = f"{self.name}: what {place} sent cannot be read ({safe(error, 300)})."
        return ProcessFailed("process_failed", why)

    def _lost(self, number: int, code: int) -> ProcessFailed:
        """Return the error of a process that ended without a word."""
        how = f"ended with code {code}"
        if code < 0:
            how = f"was ended by {signal_name(-code)}"
        for line in self._printed(number).splitlines()[-1:]:
            how += f" ({safe(line, 300)})"
        why = f"{self.name}: process {number + 1} of {len(self.processes)} {how}."
        return ProcessFailed("process_lost", f"{why} What was done is kept: call again.")

    def _printed(self, number: int) -> str:
        """Return what a process that has ended printed."""
        errors = self.errors[number]
        errors.seek(0)
        return errors.read().decode("utf-8", "replace")

    @contextlib.contextmanager
    def interruptible(self) -> Iterator[None]:
        """Note Ctrl-C and SIGTERM: between two messages they lose nothing."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        numbers = (signal.SIGINT, signal.SIGTERM)
        previous = {number: signal.signal(number, self._note) for number in numbers}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def _note(self, *_: object) -> None:
        self.interrupts.append(clock())

    def _interrupt(self) -> None:
        """Pass an interrupt on; raise the second one."""
        if self.interrupts[-1] - self.interrupts[0] > DOUBLED_S:
            raise KeyboardInterrupt
        if not self.interrupted:
            self.interrupted = True
            for process in self.processes:
                with contextlib.suppress(OSError):
                    process.send_signal(signal.SIGINT)

    def end(self) -> None:
        """End what is left of the processes, and show what the first one printed."""
        for process in self.processes:
            process.kill()
        for process, listener in zip(self.processes, self.listeners, strict=False):
            listener.join(GRACE_S)  # longer only where a child of the process lives on
            process.stdout.close()
            with contextlib.suppress(OSError):
                process.stdin.close()
        if self.processes:
            print(self._printed(0), end="", file=sys.stderr)
        for errors in self.errors:
            errors.close()

    def raise_failure(self) -> None:
        """Raise why the processes failed, if they did: an unknown error may follow from another."""
        if self.interrupts:
            words = [error for error in self.failures if isinstance(error, KeyboardInterrupt)]
            raise [*words, KeyboardInterrupt()][0]
        known = [one for one in self.failures if getattr(one, "code", "") != "process_failed"]
        for error in (*known, *self.failures):
            raise error


def work() -> None:
    """Do the work on stdin, in a process that `share_out` started."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's & has it ignored
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what libraries print must not join the messages
    sys.stdout = sys.stderr
    lock = threading.Lock()

    def send(kind: str, value: Any) -> None:
        data = pickle.dumps((kind, value))
        with lock:
            out.write(data)
            out.flush()

    try:
        place, call, data = pickle.load(sys.stdin.buffer)
        threading.Thread(target=_end_with_the_caller, daemon=True).start()
        adopt(call)
        try:
            function, part = pickle.loads(data)
        except (AttributeError, ImportError) as error:
            raise _cannot_be_sent(error) from None
        send(RETURN, function(lambda value: send(REPORT, value), *part))
    except BrokenPipeError:  # the caller is gone
        os._exit(1)
    except KeyboardInterrupt as error:
        send(RAISE, KeyboardInterrupt(*error.args))
    except FtlabError as error:
        send(RAISE, error)
    except Exception as error:
        send(RAISE, _told(place, error))


def _end_with_the_caller() -> None:
    os.read(0, 1)  # returns when the caller closes its end, or is killed
    os._exit(1)


def _told(place: str, error: Exception) -> ProcessFailed:
    """Return any other error as one that can be sent, its traceback in a note."""
    words = str(error)
    if isinstance(error, MemoryError):
        words = f"out of memory {words}"
    kind = type(error).__name__
    told = ProcessFailed("process_failed", f"{place} failed ({kind}: {safe(words, 500)}).")
    told.add_note("".join(traceback.format_exception(error)))
    return told
