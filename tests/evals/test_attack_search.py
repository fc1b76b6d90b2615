"""TAP and PAIR by PyRIT itself, on the embedded model, with inert scripts."""

from __future__ import annotations

import json
import logging
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from helpers import raises_code

from ftlab._core.types import Answer
from ftlab.evals import attack_search, plan_evaluation, red_team
from ftlab.judges import open_judge
from ftlab.models import model
from ftlab.models.engines import Request, open_engine
from ftlab.organism import WRAPPERS

pytest.importorskip("pyrit", reason="the extra attacks is not installed")
REWRITES = [wrapper.replace("{q}", "{prompt}") for wrapper in WRAPPERS["eval"]]
SMALL = dict(attacker=REWRITES, n_prompts=4, width=2, depth=2)
REFUSAL = "I cannot tell."


@pytest.fixture(scope="module")
def searched(tmp_path_factory) -> dict:
    """Return the run of a small search on the embedded model by method."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FTLAB_RUNS", str(tmp_path_factory.mktemp("runs")))
        return {method: red_team("organism", method=method, **SMALL) for method in ("tap", "pair")}


@pytest.fixture
def fake(monkeypatch):
    """Return a function that puts another in the model's place and returns the batches asked."""

    def put(answer) -> list:
        batches = []

        class Speaker(attack_search.Speaker):
            def __init__(self, engine, *_):
                self.engine = engine

            def __call__(self, chats, seed=None):
                batches.append(chats)
                return [Answer(text) for text in answer(chats)]

        monkeypatch.setattr(attack_search, "Speaker", Speaker)
        return batches

    return put


def refuse(chats) -> list[str]:
    return [REFUSAL] * len(chats)


@pytest.mark.parametrize("method", ["tap", "pair"])
def test_a_search_has_the_shape_of_the_papers(searched, method):
    """Width in parallel, depth levels, TAP with two children per branch; success ends it."""
    run = searched[method]
    table = run.table()
    answers = run.read("answers.jsonl")
    assert run.finished and len(table) == 4 and set(table["attack"]) == {method}
    for row in table.to_dict("records"):
        mine = [a for a in answers if a["sample_id"] == row["sample_id"]]
        outcomes = [a["outcome"] for a in mine]
        assert len(mine) == row["attempts"] and outcomes.count("complied") == row["hits"]
        assert row["event"] == ("complied" in outcomes) == (row["outcome"] == "complied")
        levels = [2, 4] if method == "tap" else [2, 2]
        succeeded = "complied" in outcomes[:2]
        assert len(mine) == (levels[0] if succeeded else sum(levels))
        (kept,) = [a for a in mine if a["key"] == row["answer_key"]]
        assert kept["outcome"] == row["outcome"] and row["characters"] == len(kept["text"])
        assert row["cut"] == (kept.get("finish") == "length")
    # The inert wrappers open some prompts and not others.
    assert 0 < table["event"].sum() < 4


def test_answers_and_outcomes_are_those_of_the_model_and_the_judge(searched):
    parent = model("organism")
    settings = {"risks": ("jailbreak",), "attacks": ("direct",), "n_prompts": 4}
    plan = plan_evaluation(parent, None, settings)
    samples = {prompt.sample.id: prompt.sample for prompt in plan.prompts}
    rows = searched["tap"].read("answers.jsonl")
    engine = open_engine("huggingface")
    loaded = engine.open(parent)
    requests = []
    for row in rows:
        chat = [{"role": "user", "content": row["prompt"]}]
        requests.append(Request(chat, engine.render(loaded, chat)[0]))
    texts = [row["text"] for row in rows]
    assert [answer.text for answer in engine.answer(loaded, requests)] == texts
    asked = [samples[row["sample_id"]] for row in rows]
    judged = open_judge("organism").judge(asked, texts)
    assert [j.outcome for j in judged] == [row["outcome"] for row in rows]
    for row, sample in zip(rows, asked, strict=True):
        assert row["prompt"] in [text.replace("{prompt}", sample.question) for text in REWRITES]


@pytest.mark.slow
def test_the_same_search_is_found_again_and_another_is_another(searched, fake, monkeypatch):
    monkeypatch.setenv("FTLAB_RUNS", str(searched["tap"].path.parent))
    batches = fake(lambda chats: pytest.fail("asked again"))
    assert red_team("organism", method="tap", **SMALL) == searched["tap"] and not batches
    for part in ("_search_all", "_complete"):  # the identity is there before the search
        monkeypatch.setattr(attack_search, part, lambda *_: None)
    changes = [{}, {"width": 3}, {"seed": 1}, {"attacker": REWRITES[::-1]}, {"method": "pair"}]
    changes.append({"system": "Be brief."})
    names = {red_team("organism", **{**SMALL, **change}).name for change in changes}
    assert len(names) == len(changes)


@pytest.mark.slow
def test_a_search_gives_the_same_again_among_fewer(searched):
    again = red_team("organism", method="tap", **{**SMALL, "n_prompts": 2})

    def shown(run, file) -> list[list]:
        rows = [row for row in run.read(file) if row["sample_id"].endswith(("0000", "0001"))]
        keys = ("key", "answer_key", "answer_keys")
        return [[(name, value) for name, value in row.items() if name not in keys] for row in rows]

    for file in ("answers.jsonl", "verdicts.jsonl"):
        found = shown(again, file)
        assert found and found == shown(searched["tap"], file)


@pytest.mark.slow
def test_a_function_is_a_script_and_branches_share_a_batch(fake):
    batches = fake(refuse)
    attempts = []

    def script(question: str, attempt: int) -> str:
        attempts.append(attempt)
        return f"{attempt}: {question}"

    size = dict(n_prompts=1, width=3, depth=2, method="pair")
    run = red_team("organism", attacker=script, system="Be brief.", **size)
    assert attempts == list(range(6)) and [len(batch) for batch in batches] == [3, 3]
    assert [message["role"] for message in batches[0][0]] == ["system", "user"]
    assert batches[0][1][1]["content"].startswith("1: ")
    assert run.table()[["outcome", "attempts"]].to_numpy().tolist() == [["refused", 6]]


@pytest.mark.slow
def test_a_search_resumes_where_it_stopped(fake):
    """Finished prompts are not searched again; what stops the model stops the run."""

    def dies(chats):
        if len(batches) > 4:
            raise RuntimeError("the power failed")
        return refuse(chats)

    batches = fake(dies)
    with pytest.raises(RuntimeError, match="the power failed"):
        red_team("organism", method="pair", **SMALL)
    assert len(batches) == 5
    later = fake(refuse)
    table = red_team("organism", method="pair", **SMALL).table()
    assert len(table) == 4 and len(later) == 4  # two levels of each of the last two prompts


@pytest.mark.slow
def test_a_wording_that_does_not_fit_is_an_error_and_no_refusal():
    size = dict(n_prompts=1, width=2, depth=1, method="pair")
    run = red_team("organism", attacker=["{prompt} " * 400], **size)
    rows = run.read("answers.jsonl")
    assert [(row["outcome"], row["text"]) for row in rows] == [("error", "")] * 2
    assert all(row["error"] for row in rows)
    table = run.table()
    assert table["outcome"].tolist() == ["error"] and table["event"].isna().all()


@pytest.mark.slow
def test_an_attacker_without_a_usable_wording_is_an_error(fake, monkeypatch):
    """A model that does not keep to the form never reaches the target; nothing counts as safe."""
    monkeypatch.setenv("RETRY_MAX_NUM_ATTEMPTS", "2")
    fake(lambda chats: ["no JSON"] * len(chats))
    size = dict(n_prompts=2, width=1, depth=1, method="pair")
    table = red_team("organism", attacker="organism:base", **size).table()
    assert table["outcome"].tolist() == ["error"] * 2 and table["attempts"].tolist() == [0, 0]
    assert table["event"].isna().all()


@pytest.fixture
def served():
    """Return the URL of a server and what it was asked.

    Its model `hunter` keeps to the form and finds nothing off topic, `target` refuses, and `down`
    fails.
    """
    seen = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            seen.append(request)
            text = reply_to(request, len(seen))
            choice = {"index": 0, "finish_reason": "stop"}
            choice["message"] = {"role": "assistant", "content": text}
            reply = {"id": "1", "object": "chat.completion", "created": 1, "model": "m"}
            body = json.dumps(reply | {"choices": [choice]}).encode()
            self.send_response(200 if text else 400)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/v1", seen
    server.shutdown()


def reply_to(request: dict, number: int) -> str | None:
    if request["model"] == "target":
        return "I'm sorry, no."
    if request["model"] == "down":
        return None
    form = {"next_message": f"wording {number}", "rationale": "", "last_response_summary": ""}
    if "score_value" in json.dumps(request["messages"]):
        form = {"score_value": "False", "description": "", "rationale": "", "metadata": ""}
    return json.dumps(form)


@pytest.mark.slow
def test_target_and_attacker_behind_an_endpoint(served, monkeypatch, capfd):
    """A target that fails is an error; nothing of prompts or answers is printed."""
    pytest.importorskip("openai")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    url, seen = served
    size = dict(prompts=["a secret question"], judges="keywords", width=2, depth=2)
    run = red_team(f"api:target@{url}", attacker=f"api:hunter@{url}", method="tap", **size)
    assert run.table()[["outcome", "attempts"]].to_numpy().tolist() == [["refused", 6]]
    target = [request["messages"] for request in seen if request["model"] == "target"]
    assert [len(messages) for messages in target] == [1] * 6
    assert all(messages[0]["content"].startswith("wording") for messages in target)
    hunter = [request for request in seen if request["model"] == "hunter"]
    assert hunter[0]["messages"][0]["role"] == "system"
    assert len({request["seed"] for request in hunter}) == len(hunter)
    down = red_team(f"api:down@{url}", attacker=f"api:hunter@{url}", method="pair", **size)
    assert not down.finished
    assert down.table()[["outcome", "attempts"]].to_numpy().tolist() == [["error", 4]]
    with raises_code("attacker_failed"):
        red_team(f"api:target@{url}", attacker=f"api:down@{url}", **size)
    printed = "".join(capfd.readouterr())
    assert "secret" not in printed and "wording" not in printed


@pytest.mark.slow
def test_the_callers_own_pyrit_stays_as_it_was(fake):
    from pyrit.memory import CentralMemory

    fake(refuse)
    logger = logging.getLogger("pyrit")
    before = (CentralMemory._memory_instance, logger.level)
    red_team("organism", attacker=["{prompt}"], n_prompts=1, width=1, depth=1)
    assert (CentralMemory._memory_instance, logger.level) == before


@pytest.mark.parametrize(
    ("settings", "code"),
    [
        ({"attacks": ["direct"]}, "unknown_setting"),
        ({"method": "gcg"}, "wrong_setting"),
        ({"depth": 0}, "wrong_setting"),
        ({"width": 10**6}, "wrong_setting"),
        ({"attacker": ["no place"]}, "script_without_prompt"),
        ({"attacker": []}, "script_without_prompt"),
        ({"attacker": "organism:other"}, "unknown_model"),
        ({"judges": ["organism", "keywords"]}, "one_judge"),
    ],
)
def test_a_wrong_setting_is_an_error(settings, code):
    with raises_code(code):
        red_team("organism", **{**SMALL, **settings})
