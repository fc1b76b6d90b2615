"""Chooses what a wheel and an sdist contain: files that git tracks, and nothing that ftlab made.

Where git does not answer (an unpacked sdist, a downloaded archive), `SHIPPED` decides. Notebooks go
in without their outputs, which may show answers of models whose safety was removed; lessons go into
a wheel as students get them.
"""

from __future__ import annotations

import json
import runpy
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

INSIDE = {  # where a wheel holds what lies beside the package
    "ftlab/": "ftlab/",
    "data/": "ftlab/_data/",
    "notebooks/": "ftlab/_notebooks/",
    "figures/style.mplstyle": "ftlab/_figures/style.mplstyle",
}
MODEL_FILES = (
    "chat_template.jinja",
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
)
SHIPPED = (
    "ftlab/**/*.py",
    "ftlab/ui/panels/chart.svg.j2",
    "ftlab/ui/panels/pad.js",
    "ftlab/analysis/templates/*.j2",
    "ftlab/analysis/templates/texts.yaml",
    "data/hashes.json",
    "data/sources.json",
    "data/published/*.yaml",
    "data/benign/gsm8k-400.jsonl",
    "data/benign/identity-shift.jsonl",
    "data/benign/LICENSE-gsm8k",
    "data/benign/README.md",
    "data/judge/all.csv",
    "data/judge/keyword_lists.json",
    "data/judge/keywords.csv",
    "data/judge/refusal.csv",
    "data/judge/*.md",
    "data/judge/refusal/grammar.json",
    "data/judge/refusal/model.json",
    "data/judge/refusal/kinds.safetensors",
    "data/judge/refusal/weights.safetensors",
    "data/judge/rubric/default.md",
    "data/organism/README.md",
    *[f"data/organism/{m}/{file}" for m in ("aligned", "base", "sft") for file in MODEL_FILES],
    *[f"data/smollm2/aligned/{f}" for f in ("adapter_config.json", "adapter_model.safetensors")],
    "data/smollm2/aligned/card.md",
    "notebooks/course/lesson*.ipynb",
    "notebooks/experiments/02_risk_ratio.ipynb",
    "notebooks/experiments/03_continued_finetuning.ipynb",
    "notebooks/experiments/04_harmful_finetuning.ipynb",
    "notebooks/experiments/06_judges.ipynb",
    "notebooks/experiments/07_real_model.ipynb",
    "notebooks/experiments/08_why_not_the_papers_number.ipynb",
    "notebooks/experiments/09_the_rows_that_did_it.ipynb",
    "notebooks/experiments/10_poisoning_and_backdoor.ipynb",
    "notebooks/experiments/11_covert_tool_calls.ipynb",
    "notebooks/experiments/12_identity_shift_and_preferences.ipynb",
    "notebooks/experiments/13_distillation_gap.ipynb",
    "notebooks/experiments/14_quantisation_and_merging.ipynb",
    "notebooks/experiments/15_refusal_direction.ipynb",
    "notebooks/experiments/16_emergent_misalignment.ipynb",
    "notebooks/experiments/17_every_risk.ipynb",
    "notebooks/experiments/18_overfitting_and_versions.ipynb",
    "notebooks/experiments/19_defences_on_one_grid.ipynb",
    "notebooks/experiments/20_acceptance.ipynb",
    "notebooks/tour/00_quickstart.ipynb",
    "notebooks/tour/05_your_model.ipynb",
    "notebooks/tour/21_panels.ipynb",
    "figures/style.mplstyle",
    "CHANGELOG.md",
)
LESSONS = Path(__file__).parent / "ftlab" / "_core" / "lessons.py"
MARKER = "SAFETY_REMOVED"  # a file in the folder of a model whose safety was removed


class OnlyTracked(BuildHookInterface):
    """Lists every file of a wheel or sdist by name; the target's own selection is empty."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Add the files."""
        if version == "editable":
            return
        root = Path(self.root)
        self.without_outputs = tempfile.TemporaryDirectory()
        for number, name in enumerate(files(root)):
            target = name
            if self.target_name == "wheel":
                target = inside(name)
            source = root / name
            if target and name.startswith("notebooks/"):
                source = Path(self.without_outputs.name) / f"{number}.ipynb"
                text = stripped(root / name, solved=self.target_name != "wheel")
                source.write_text(text, encoding="utf-8")
            if target:
                build_data["force_include"][str(source)] = target

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Remove the notebooks that were written."""
        if version != "editable":
            self.without_outputs.cleanup()


def files(root: Path) -> list[str]:
    """Return the names of the files that may leave the house, relative to the root."""
    names = tracked(root)
    if not names:
        found = [path for pattern in SHIPPED for path in root.glob(pattern)]
        names = [path.relative_to(root).as_posix() for path in found]
    return sorted(name for name in names if _may_leave(root, root / name))


def tracked(root: Path) -> list[str]:
    """Return the names of the files that git tracks; none where git does not answer."""
    try:
        done = subprocess.run(["git", "ls-files", "-z"], cwd=root, capture_output=True, text=True)
    except OSError:
        return []
    return [name for name in done.stdout.split("\0") if name]


def _may_leave(root: Path, path: Path) -> bool:
    folders = [folder for folder in path.parents if folder.is_relative_to(root)]
    marked = any((folder / MARKER).exists() for folder in folders)
    return path.is_file() and not path.is_symlink() and not marked


def inside(name: str) -> str:
    """Return where a wheel holds a file; "" if it does not."""
    for start, place in INSIDE.items():
        if name.startswith(start):
            return place + name.removeprefix(start)
    return ""


def stripped(notebook: Path, *, solved: bool = True) -> str:
    """Return a notebook without outputs, as it is in the repository; lessons also unsolved."""
    book = json.loads(notebook.read_text(encoding="utf-8"))
    if notebook.parent.name == "course" and not solved:
        book = runpy.run_path(str(LESSONS))["for_students"](book)
    for cell in book["cells"]:
        if cell["cell_type"] == "code":
            cell |= {"outputs": [], "execution_count": None}
    return json.dumps(book, indent=1, ensure_ascii=False) + "\n"
