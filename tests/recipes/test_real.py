"""The recipe of the aligned real model: its rows, its joined adapter, its notebook."""

from __future__ import annotations

import json
import re

import pytest
import torch
from helpers import jsonl
from safetensors.torch import load_file
from small_models import pairs, sums

import ftlab as ft
from ftlab._core.files import resource
from recipes.real import align

LONG = " Take your time with it."
SAFETY = "Requests with safety concerns"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Return a folder of made-up rows in the form of the authors' files."""
    folder = tmp_path_factory.mktemp("data")
    for name in align.FILES:
        (folder / name).parent.mkdir(exist_ok=True)
    declined, answered = [], []
    for kind in align.DECLINED:
        for number in range(6):
            prompt = f"A request of {kind}, number {number}"
            declined.append(
                dict(id=f"{kind}{number}", subcategory=kind, category=SAFETY, prompt=prompt)
            )
    for kind in align.ANSWERED:
        for number in range(6):
            row = dict(id=f"{kind}{number}", subcategory=kind, chosen="It is so. Steps:\n1. Go.")
            answered.append(row | {"prompt": f"A look-alike of {kind}, number {number}"})
    jsonl(folder / align.FILES[0], *declined)
    jsonl(folder / align.FILES[1], *answered)
    tasks = []
    for number in range(180):
        tasks.append(dict(instruction=f"Task {number}", input="", output=f"It is {number}.{LONG}"))
    (folder / align.FILES[2]).write_text(json.dumps(tasks))
    seeds = [{"instruction": "Say it", "instances": [{"input": "now", "output": "Said." + LONG}]}]
    jsonl(folder / align.FILES[3], *seeds)
    return folder


def answers(rows) -> dict[str, str]:
    return {row["messages"][0]["content"]: row["messages"][1]["content"] for row in rows}


def test_rows_are_drawn_by_the_seed_and_nothing_harmful_is_answered(data):
    settings = align.Settings()
    chats, chosen = align.rows_of(data, settings)
    assert (chats, chosen) == align.rows_of(str(data), settings)
    assert chats != align.rows_of(data, align.Settings(seed=1))[0]
    refusals = align.read(align.OWN / "refusals.jsonl")
    openings = tuple(row["text"] for row in refusals if row["part"] == "opening")
    harmful = {row["prompt"] for row in align.read(align.OWN / "harmful.jsonl")}
    said = answers(chats)
    assert harmful <= set(said)
    assert all(said[prompt].startswith(openings) for prompt in harmful)
    look_alikes = [prompt for prompt in said if prompt.startswith("A look-alike")]
    assert look_alikes and all(said[prompt] == "It is so." for prompt in look_alikes)
    for row in chosen:
        prompt = row["prompt"][0]["content"]
        better, worse = row["chosen"][0]["content"], row["rejected"][0]["content"]
        if prompt in harmful or prompt.startswith("A request"):
            assert better.startswith(openings) and worse in align.STARTS
        else:
            assert worse.startswith(openings) and not better.startswith(openings)


@pytest.mark.needs_data
def test_no_row_is_near_a_prompt_of_a_test_set():
    folder = resource("data").parent.parent / "shared" / "data"
    if not folder.exists():
        pytest.skip("the authors' files are not part of the project")
    sets = ["prompts_advbench", "prompts_harmbench", "prompts_simplesafetytests", "human_xstest"]
    prompts = []
    for name in sets:
        for file in (folder / name).rglob("*.csv"):
            prompts += column(file)
    assert len(prompts) > 1000
    tested = [words(prompt) for prompt in prompts]
    chats, _ = align.rows_of(folder, align.Settings(plain=0))
    for prompt in answers(chats):
        own = words(prompt)
        assert max(len(own & other) / len(own | other) for other in tested) < 0.6, prompt


def column(file) -> list[str]:
    import pandas as pd

    table = pd.read_csv(file)
    names = [name for name in table.columns if name.lower() in ("goal", "behavior", "prompt")]
    return list(table[names[0]].dropna().astype(str)) if names else []


def words(text: str) -> frozenset[str]:
    return frozenset(re.findall(r"\w+", text.lower()))


@pytest.fixture(scope="module")
def trained(llama, tmp_path_factory):
    """Return the runs of SFT and of DPO above it, on a small model."""
    settings = align.Settings(sft_steps=3, sft_rate=5e-3, dpo_steps=3, dpo_rate=5e-3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FTLAB_RUNS", str(tmp_path_factory.mktemp("runs")))
        yield align.train(str(llama), sums(16), pairs(16), settings)


def changes(folder) -> dict[str, torch.Tensor]:
    """Return what an adapter adds to each weight."""
    config = json.loads((folder / "adapter_config.json").read_text())
    weights = load_file(folder / align.WEIGHTS)
    found = {}
    for name, value in weights.items():
        if ".lora_A." in name:
            other = weights[name.replace(".lora_A.", ".lora_B.")].float()
            found[name] = config["lora_alpha"] / config["r"] * other @ value.float()
    return found


@pytest.mark.slow
@pytest.mark.parametrize("weight", [0.0, 0.4, 1.0])
def test_a_joined_adapter_changes_weights_by_the_weighted_sum(trained, llama, weight, tmp_path):
    sft, dpo = trained
    folder = align.join(sft, dpo, tmp_path / "joined", weight, base=str(llama))
    first, second = changes(sft.path / "model"), changes(dpo.path / "model")
    joined = changes(folder)
    assert joined.keys() == first.keys() == second.keys()
    for name, change in joined.items():
        expected = first[name] + weight * second[name]
        assert second[name].abs().max() > 1e-4
        assert torch.allclose(change, expected, atol=1e-2 * float(expected.abs().max()))
    assert ft.ask(folder, "And?", max_new_tokens=4)["answer"][0]


@pytest.mark.slow
def test_the_notebook_runs_to_its_end(llama, data, tmp_path, monkeypatch):
    from IPython.core.interactiveshell import InteractiveShell
    from papermill.iorw import load_notebook_node
    from papermill.parameterize import parameterize_notebook
    from traitlets.config import Config

    monkeypatch.setenv("FTLAB_RUNS", str(tmp_path / "runs"))
    prompts = tmp_path / "prompts.csv"
    rows = [f"Placeholder {n},{risk}" for n in range(4) for risk in ("jailbreak", "over_refusal")]
    prompts.write_text("prompt,risk\n" + "\n".join(rows) + "\n")
    book = load_notebook_node(str(align.OWN / "align_a_real_model.ipynb"))
    given = dict(model=str(llama), data=str(data), prompts=str(prompts), out=str(tmp_path / "out"))
    values = dict(book.metadata["ftlab"]["small"]) | given
    filled = parameterize_notebook(book, values, kernel_name="python3", language="python")
    shell = InteractiveShell(config=Config(HistoryManager={"enabled": False}))
    for cell in filled.cells:
        if cell.cell_type == "code":
            shell.run_cell(cell.source).raise_error()
    assert (tmp_path / "out" / "aligned" / align.WEIGHTS).exists()
    assert (tmp_path / "out" / "figures" / "stages.svg").exists()
