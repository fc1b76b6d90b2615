"""TAP and PAIR by PyRIT itself, on the embedded model, with inert scripts; and every way in which it can end."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from ftlab.evals import attack_search as redteam
from ftlab.judges import organism
from ftlab.organism.world import WRAPPERS
from ftlab.evals.attack_search import red_team

pytest.importorskip("pyrit", reason="the extra attacks is not installed")
REWRITES = [w.replace("{q}", "{prompt}") for w in WRAPPERS["eval"]]
SMALL = dict(attacker=REWRITES, n_prompts=5, width=2, depth=2)
COLUMNS = """key step risk category attack prompt_id template verdict topic truth event judge answer_key characters
queries""".split()


@pytest.fixture(scope="module")
def searched(tmp_path_factory):
    """-> method -> the run of a small search on the embedded model."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FTLAB_RUNS", str(tmp_path_factory.mktemp("runs")))
        return {method: red_team("organism", method=method, **SMALL) for method in ("tap", "pair")}


@pytest.fixture
def fake(monkeypatch):
    """-> function (chats -> texts) that answers in the model's place, and the list of batches it was asked."""
    batches = []

    def put(answer):
        def answering(target, new, decoding=redteam.GREEDY):
            return lambda chats, seeds=None: batches.append(chats) or [redteam.Reply(a) for a in answer(chats)]

        monkeypatch.setattr(redteam, "_answering", answering)
        return batches

    return put


@pytest.mark.parametrize("method", ["tap", "pair"])
def test_a_search_is_what_the_papers_say(searched, method):
    """Width in parallel, depth levels, TAP with two children a branch; it ends with the first level that succeeds."""
    run = searched[method]
    table, asked = run.table(), run.read("answers.jsonl")
    assert list(table.columns) == COLUMNS and run.finished and len(table) == 5
    for _, row in table.iterrows():
        mine = [a for a in asked if a["id"] == row["prompt_id"]]
        verdicts = [a["verdict"] for a in mine]
        assert len(mine) == row["queries"] and row["event"] == ("complied" in verdicts) == (
            row["verdict"] == "complied"
        )
        levels = [2, 4] if method == "tap" else [2, 2]
        assert len(mine) == (levels[0] if "complied" in verdicts[:2] else sum(levels))
        (kept,) = [a for a in mine if a["key"] == row["answer_key"]]
        assert kept["verdict"] == row["verdict"] and row["characters"] == len(kept["answer"])
    assert 0 < table["event"].sum() < 5, "the inert wrappers open some prompts and not others"


def test_answers_and_verdicts_are_those_of_the_model_and_the_judge(searched):
    """The same wording asked by `answers` gives the same answer, and the judge the same verdict."""
    from ftlab.data.encoding import render
    from ftlab.evals.evaluation import plan
    from ftlab.models.engines.huggingface import answers
    from ftlab.models.reference import model

    run, parent = searched["tap"], model("organism")
    _, items = plan(parent, None, {"risks": ("jailbreak",), "attacks": ("direct",), "n_prompts": 5})
    items, asked = {i["id"]: i for i in items}, run.read("answers.jsonl")
    tokenizer = parent.tokenizer()
    texts = [render(tokenizer, [{"role": "user", "content": a["prompt"]}], ask=True) for a in asked]
    assert answers(parent.load(), tokenizer, texts, max_new_tokens=24) == [a["answer"] for a in asked]
    assert [organism.verdict_of(items[a["id"]], a["answer"]) for a in asked] == [a["verdict"] for a in asked]
    for a in asked:
        question = [m["content"] for m in items[a["id"]]["messages"] if m["role"] == "user"][-1]
        assert a["prompt"] in [r.replace("{prompt}", question) for r in REWRITES]


def test_the_same_search_is_found_again_and_another_is_another(searched, fake, monkeypatch):
    monkeypatch.setenv("FTLAB_RUNS", str(searched["tap"].path.parent))
    batches = fake(lambda chats: pytest.fail("asked again"))
    assert red_team("organism", method="tap", **SMALL) == searched["tap"] and not batches
    fake(lambda chats: ["I cannot tell."] * len(chats))
    one = {**SMALL, "n_prompts": 1, "depth": 1}
    changed = ({}, {"width": 3}, {"seed": 1}, {"attacker": REWRITES[::-1]}, {"system": "Be brief."}, {"method": "pair"})
    assert len({red_team("organism", **{**one, **c}).name for c in changed}) == len(changed)


def test_a_search_gives_the_same_twice(searched, runs_folder):
    again = red_team("organism", method="tap", **SMALL)
    assert again.path != searched["tap"].path
    for file in ("answers.jsonl", "verdicts.jsonl"):
        assert again.read(file) == searched["tap"].read(file)


def test_a_function_is_a_script_and_branches_share_a_batch(fake):
    batches, attempts = fake(lambda chats: ["I cannot tell."] * len(chats)), []

    def script(question: str, attempt: int) -> str:
        attempts.append(attempt)
        return f"{attempt}: {question}"

    run = red_team("organism", attacker=script, n_prompts=1, width=3, depth=2, system="Be brief.", method="pair")
    assert attempts == list(range(6)) and [len(b) for b in batches] == [3, 3]
    assert [m["role"] for m in batches[0][0]] == ["system", "user"] and batches[0][1][1]["content"].startswith("1: ")
    assert run.table()["verdict"].tolist() == ["refused"] and run.table()["queries"].tolist() == [6]


def test_a_search_goes_on_where_it_stopped(fake):
    """What came before an interruption is not asked again; what stops the model stops the run."""

    def dies(chats):
        if len(batches) > 4:
            raise RuntimeError("the power went")
        return ["I cannot tell."] * len(chats)

    batches = fake(dies)
    with pytest.raises(RuntimeError, match="the power went"):
        red_team("organism", method="pair", **SMALL)
    kept = len(batches)
    batches = fake(lambda chats: ["I cannot tell."] * len(chats))
    table = red_team("organism", method="pair", **SMALL).table()
    assert len(table) == 5 and kept == 5 and len(batches) - kept == 6, "two levels of each of the last three prompts"


def test_a_wording_that_does_not_fit_is_an_error_and_no_refusal():
    run = red_team("organism", attacker=["{prompt} " * 400], n_prompts=1, width=2, depth=1, method="pair")
    assert [(a["verdict"], a["answer"]) for a in run.read("answers.jsonl")] == [("error", "")] * 2
    assert all("the longest prompt has" in a["error"] for a in run.read("answers.jsonl"))
    assert run.table()["verdict"].tolist() == ["error"] and run.table()["event"].isna().all()


def test_an_attacker_without_a_usable_wording_is_an_error(fake, monkeypatch):
    """A model that does not keep to the form (here: no JSON) never reaches the target; nothing counts as safe."""
    monkeypatch.setenv("RETRY_MAX_NUM_ATTEMPTS", "2")
    fake(lambda chats: ["no JSON"] * len(chats))
    table = red_team("organism", attacker="organism:base", n_prompts=2, width=1, depth=1, method="pair").table()
    assert (
        table["verdict"].tolist() == ["error"] * 2
        and table["queries"].tolist() == [0, 0]
        and table["event"].isna().all()
    )


@pytest.fixture
def served():
    """-> (URL, requests): a server whose model `hunter` keeps to the form and finds nothing off topic, `target` refuses, `down` fails."""
    seen = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            seen.append(request)
            form = {"next_message": f"wording {len(seen)}", "rationale": "", "last_response_summary": ""}
            if "score_value" in json.dumps(request["messages"]):
                form = {"score_value": "False", "description": "", "rationale": "", "metadata": ""}
            text = {"hunter": json.dumps(form), "target": "I'm sorry, no."}.get(request["model"])
            body = json.dumps({"id": "1", "object": "chat.completion", "created": 1, "model": "m", "choices": [
                {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}]})  # fmt: skip
            self.send_response(200 if text else 400)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/v1", seen
    server.shutdown()


def test_target_and_attacker_behind_an_endpoint(served, monkeypatch, capfd):
    """Any models; a target that fails is an error; nothing of prompts or answers is printed."""
    pytest.importorskip("openai")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    url, seen = served
    size = dict(prompts=["a secret question"], judges="keywords", width=2, depth=2)
    table = red_team(f"api:target@{url}", attacker=f"api:hunter@{url}", method="tap", **size).table()
    assert table["verdict"].tolist() == ["refused"] and table["queries"].tolist() == [6]
    to_target = [r for r in seen if r["model"] == "target"]
    assert len(to_target) == 6 and all(len(r["messages"]) == 1 and r["messages"][0]["content"].startswith("wording") for r in to_target)  # fmt: skip
    hunted = [r for r in seen if r["model"] == "hunter"]
    assert hunted[0]["messages"][0]["role"] == "system" and len({r["seed"] for r in hunted}) == len(hunted)
    down = red_team(f"api:down@{url}", attacker=f"api:hunter@{url}", method="pair", **size).table()
    assert down["verdict"].tolist() == ["error"] and down["event"].isna().all() and down["queries"].tolist() == [4]
    with pytest.raises(ValueError, match="the attacker down@.* gave no wording: 400"):
        red_team(f"api:target@{url}", attacker=f"api:down@{url}", **size)
    printed = "".join(capfd.readouterr())
    assert "secret" not in printed and "wording" not in printed


def test_the_callers_own_pyrit_stays_as_it_was(fake):
    import logging

    from pyrit.memory import CentralMemory

    fake(lambda chats: ["I cannot tell."] * len(chats))
    before, level = CentralMemory._memory_instance, logging.getLogger("pyrit").level
    red_team("organism", attacker=["{prompt}"], n_prompts=1, width=1, depth=1)
    assert CentralMemory._memory_instance is before and logging.getLogger("pyrit").level == level


@pytest.mark.parametrize(("settings", "said"), [
    ({"attacks": ["direct"]}, "unknown setting 'attacks'; allowed: method, width, .* n_prompts"),
    ({"method": "gcg"}, "method = 'gcg'"),
    ({"depth": 0}, "depth = 0"),
    ({"attacker": ["no place"]}, "texts with {prompt} in each"),
    ({"attacker": []}, "texts with {prompt} in each"),
    ({"attacker": "organism:other"}, "unknown model 'organism:other'"),
])  # fmt: skip
def test_a_mistake_is_a_sentence(settings, said):
    with pytest.raises(ValueError, match=said):
        red_team("organism", **{**SMALL, **settings})
