"""JupyterLab as its users meet it: a server, and notebooks that are driven by keyboard and mouse."""

from __future__ import annotations

import json
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import nbformat
from papermill.parameterize import parameterize_notebook
from playwright.sync_api import Locator, Page, expect

ROOT = Path(__file__).parents[2]
START_S = 60  # seconds that JupyterLab may take until it answers
CELL_S = 240  # seconds that a cell may take
RUN = re.compile(r"\[\d+\]:")  # the prompt of a cell that has ended
# Again and again, for an output above that grows moves the cell out of sight.
LAID_OUT = """output => {
    output.closest(".jp-Cell").scrollIntoView();
    return output.checkVisibility({contentVisibilityAuto: true});
}"""
# It asks on its first day whether it may fetch news from the internet.
QUIET = '{"fetchNews": "false", "checkForUpdates": false}'


class Lab:
    """A JupyterLab server with a home, a folder of notebooks and a folder of runs of its own.

    Args:
        home: An empty folder for all of it.
    """

    def __init__(self, home: Path):
        self.folder = home / "notebooks"
        self.runs = home / "runs"
        self.token = secrets.token_hex(16)
        self.port = _free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = home / "lab.log"
        self.folder.mkdir()
        settings = home / "settings" / "@jupyterlab" / "apputils-extension"
        settings.mkdir(parents=True)
        (settings / "notification.jupyterlab-settings").write_text(QUIET)
        began = time.monotonic()
        self.process = self._start(home)
        self._wait()
        self.start_s = time.monotonic() - began

    def _start(self, home: Path) -> subprocess.Popen:
        paths = [ROOT, ROOT / "tests", ROOT / "tests" / "browser"]
        env = os.environ | {
            "HOME": str(home),
            "IPYTHONDIR": str(home / "ipython"),
            "JUPYTER_CONFIG_DIR": str(home / "config"),
            "JUPYTER_DATA_DIR": str(home / "data"),
            "JUPYTER_RUNTIME_DIR": str(home / "runtime"),
            "JUPYTERLAB_SETTINGS_DIR": str(home / "settings"),
            "JUPYTERLAB_WORKSPACES_DIR": str(home / "workspaces"),
            "FTLAB_RUNS": str(self.runs),
            "PYTHONPATH": os.pathsep.join(map(str, paths)),
        }
        command = [
            *(sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root"),
            f"--ServerApp.port={self.port}",
            f"--ServerApp.root_dir={self.folder}",
            f"--IdentityProvider.token={self.token}",
        ]
        with self.log.open("w") as log:
            return subprocess.Popen(
                command, env=env, cwd=self.folder, stdout=log, stderr=log, start_new_session=True
            )

    def _wait(self) -> None:
        """Wait until the server answers."""
        until = time.monotonic() + START_S
        while time.monotonic() < until and self.process.poll() is None:
            try:
                with urllib.request.urlopen(f"{self.url}/api", timeout=5):
                    return
            except OSError:
                time.sleep(0.1)
        raise RuntimeError(f"JupyterLab did not start:\n{self.log.read_text()[-3000:]}")

    def end_kernels(self) -> None:
        """End all kernels with their sessions, as a day between saving and opening does."""
        for session in json.loads(self._ask("GET", "sessions")):
            self._ask("DELETE", f"sessions/{session['id']}")

    def _ask(self, method: str, what: str) -> bytes:
        headers = {"Authorization": f"token {self.token}"}
        address = f"{self.url}/api/{what}"
        request = urllib.request.Request(address, method=method, headers=headers)
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.read()

    def stop(self) -> None:
        """End the server with its kernels."""
        os.killpg(self.process.pid, signal.SIGTERM)
        try:
            self.process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait(timeout=20)

    def put(self, book: nbformat.NotebookNode, name: str, small: bool = False) -> str:
        """Write a notebook into the server's folder; return its name there.

        Args:
            book: The notebook, as papermill reads it where it is to be small.
            name: Its file name.
            small: Whether it gets the small parameters that its own metadata hold.
        """
        if small:
            values = book.metadata["ftlab"]["small"]
            book = parameterize_notebook(book, values, kernel_name="python3", language="python")
        nbformat.write(book, self.folder / name)
        return name

    def write(self, name: str, *cells: str) -> str:
        """Make a notebook of these code cells; return its name."""
        kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
        book = nbformat.v4.new_notebook(metadata={"kernelspec": kernel})
        book.cells = [nbformat.v4.new_code_cell(source) for source in cells]
        return self.put(book, name)

    def saved(self, name: str) -> nbformat.NotebookNode:
        """Return a notebook as it is on the disk."""
        return nbformat.read(self.folder / name, 4)


class Notebook:
    """A notebook that is open in JupyterLab.

    Args:
        page: A page of the browser.
        lab: The server.
        name: Name of a notebook in the server's folder.
    """

    def __init__(self, page: Page, lab: Lab, name: str):
        self.page = page
        self.lab = lab
        self.name = name
        self.open()

    def open(self) -> None:
        """Open it, as by its address; wait until its kernel answers."""
        self.page.goto(f"{self.lab.url}/lab/tree/{self.name}?reset&token={self.lab.token}")
        self.root = self.page.locator(".jp-NotebookPanel .jp-Notebook")
        expect(self.root.locator(".jp-Cell").first).to_be_visible(timeout=60_000)
        status = self.page.locator("#jp-main-statusbar")
        expect(status).to_contain_text("| Idle", timeout=60_000)

    def cell(self, number: int) -> Locator:
        """Return a cell by its number, from 0."""
        return self.root.locator(f'.jp-Cell[data-windowed-list-index="{number}"]')

    def output(self, number: int) -> Locator:
        """Return what stands below a cell."""
        return self.cell(number).locator(".jp-Cell-outputArea")

    def text(self, number: int) -> str:
        """Return what can be read below a cell, which the browser lays out once it is in sight."""
        output = self.output(number)
        self.page.wait_for_function(LAID_OUT, arg=output.element_handle())
        return output.inner_text()

    def select(self, number: int) -> None:
        """Select a cell by mouse, as one does before its keys are pressed."""
        self.cell(number).locator(".jp-InputPrompt").click()
        expect(self.cell(number)).to_be_focused()

    def start(self, number: int) -> None:
        """Begin to run a cell by keyboard."""
        self.select(number)
        self.page.keyboard.press("Shift+Enter")

    def finished(self, number: int, timeout_s: float = CELL_S) -> None:
        """Wait until a code cell has ended."""
        prompt = self.cell(number).locator(".jp-InputPrompt")
        expect(prompt).to_have_text(RUN, timeout=timeout_s * 1000)

    def run(self, *numbers: int) -> None:
        """Run code cells by keyboard, each after the one before."""
        for number in numbers:
            self.start(number)
            self.finished(number)

    def run_all(self) -> None:
        """Go through the whole notebook by Shift+Enter, from its first cell."""
        self.select(0)
        for number, cell in enumerate(self.lab.saved(self.name).cells):
            self.page.keyboard.press("Shift+Enter")
            if cell.cell_type == "code":
                self.finished(number)

    def write(self, number: int, source: str) -> None:
        """Replace what stands in a cell by keyboard."""
        self.select(number)
        self.page.keyboard.press("Enter")
        self.page.keyboard.press("Control+a")
        self.page.keyboard.insert_text(source)
        self.page.keyboard.press("Escape")

    def interrupt(self) -> None:
        """Interrupt the kernel by keyboard."""
        self.page.keyboard.press("Escape")
        self.page.keyboard.press("i")
        self.page.keyboard.press("i")

    def save(self) -> nbformat.NotebookNode:
        """Save by keyboard; return what is then on the disk."""
        tab = self.page.locator(".lm-DockPanel-tabBar .lm-TabBar-tab.jp-mod-current")
        self.page.keyboard.press("Escape")
        self.page.keyboard.press("Control+s")
        expect(tab).not_to_have_class(re.compile("jp-mod-dirty"), timeout=20_000)
        return self.lab.saved(self.name)

    def choose_theme(self, name: str) -> None:
        """Choose one of JupyterLab's themes in its menu by mouse."""
        self.page.get_by_role("menuitem", name="Settings", exact=True).click()
        for item in ("Theme", name):  # menus in a menu have no role
            self.page.locator(".lm-Menu-itemLabel").get_by_text(item, exact=True).click()
        expect(self.page.locator("body")).to_have_attribute("data-jp-theme-name", name)

    def figures(self) -> list[str]:
        """Return the addresses of all pictures in outputs that the browser could draw."""
        drawn = "all => all.filter(one => one.complete && one.naturalWidth > 9).map(one => one.src)"
        return self.root.locator(".jp-OutputArea-output img").evaluate_all(drawn)


class Notebook7(Notebook):
    """A notebook that is open in Notebook 7, which the same server has beside JupyterLab."""

    def open(self) -> None:
        """Open it, as by its address; wait until its kernel answers."""
        self.page.goto(f"{self.lab.url}/notebooks/{self.name}?token={self.lab.token}")
        self.root = self.page.locator(".jp-NotebookPanel .jp-Notebook")
        expect(self.root.locator(".jp-Cell").first).to_be_visible(timeout=60_000)
        status = self.page.locator(".jp-Notebook-ExecutionIndicator")
        expect(status).to_have_attribute("data-status", "idle", timeout=60_000)

    def save(self) -> nbformat.NotebookNode:
        """Save by keyboard; return what is then on the disk."""
        self.page.keyboard.press("Escape")
        with self.page.expect_response(lambda answer: answer.request.method == "PUT"):
            self.page.keyboard.press("Control+s")
        return self.lab.saved(self.name)


def errors_of(book: nbformat.NotebookNode) -> list[str]:
    """Return the errors that a saved notebook shows."""
    outputs = [output for cell in book.cells for output in cell.get("outputs", ())]
    return [output.evalue for output in outputs if output.output_type == "error"]


def _free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]
