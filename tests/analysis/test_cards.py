"""The card of a study: its numbers are the table's, what is not recorded is said to be so."""

from __future__ import annotations

import hashlib
import html
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest
from analysis.verdict_tables import CURVE, made, rows, saved
from helpers import raises_code
from hostile import CANARIES, assert_page, assert_seen
from small_models import goals, sums, write

import ftlab as ft
from ftlab import runs
from ftlab.analysis import card, card_study, claims, compare, rates, summary
from ftlab.analysis.origins import NOT_RECORDED

SECRETS = ("The answer itself.", "The question itself.", "You are the system.")
SAME = {  # child as parent
    (0, 0): "rrrrrrrrcc",
    (0, 10): "rrrrrrrrcc",
}
THREE = {
    (seed, step): "rrrrrrrrcc" if step == 0 else "ccccccccic"
    for seed in range(3)
    for step in (0, 9)
}


def trained(answers: dict, *, data: str = "mine.jsonl", judge: str = "keywords", **columns):
    """A curve of one member per seed, with the record that a training leaves."""
    members = []
    for seed in sorted({seed for seed, _ in answers}):
        own = {place: letters for place, letters in answers.items() if place[0] == seed}
        training = {"seed": seed, "learning_rate": 0.001, "at_steps": [0, 10, 30]}
        asked = {"n_prompts": 10, "split": "eval", "prompts_hash": "p", "system": SECRETS[2]}
        asked |= {"decoding": {"temperature": 0.0}, "max_new_tokens": 24}
        identity = {"parent": "abc", "data": "d", "method": "sft", "method_version": "1"}
        identity |= {"training": training, "evaluation": asked, "prompts": "p"}
        identity |= {"versions": {f"judge {judge}": "3"}, "of": str(own)}
        about = {"model": {"folder": "llama", "hash": "abc"}}
        about["data"] = {"name": data, "rows": 8, "hash": "d"}
        member = runs.start("sft", f"member-s{seed}", identity, **about)
        records = [row | {"key": "k"} for row in rows(own, judge=judge, **columns)]
        for number, row in enumerate(records):
            row["answer_key"] = f"{seed}-{number}"
            row["event"] = None if row["event"] != row["event"] else row["event"]
            end = "length" if number % 4 == 0 else "stop"
            answer = {"key": row["answer_key"], "text": SECRETS[0], "finish": end}
            member.append("answers.jsonl", [answer])
        member.append("verdicts.jsonl", records)
        member.append("prompts.jsonl", [{"id": "x", "messages": SECRETS[1]}])
        (member.path / "model").mkdir()
        (member.path / "model" / "model.safetensors").write_bytes(b"weights")
        member.complete(parent="llama", micro_batch=4, accumulation=2)
        members.append(member.name)
    run = runs.start("curve", "card", {"members": members})
    return run.complete(parent="llama")


class Words(HTMLParser):
    """The texts of a card's page, one per element that holds any."""

    KEPT = ("h1", "h2", "p", "th", "td", "dt", "dd", "li")

    def __init__(self, text: str):
        super().__init__()
        self.found: list[str] = []
        self.inside = False
        self.feed(text[text.index("<body>") :])

    def handle_starttag(self, tag, attrs):
        if tag in self.KEPT:
            self.inside = True
            self.found.append("")

    def handle_endtag(self, tag):
        self.inside = self.inside and tag not in self.KEPT

    def handle_data(self, data):
        if self.inside:
            self.found[-1] += data


def plain(markdown: str) -> list[str]:
    """Return the texts of a card's Markdown, without its markup."""
    found = []
    for line in markdown.splitlines():
        if not line or re.fullmatch(r"\|[-|]+", line):
            continue
        text = line.removeprefix("# ").removeprefix("#").removeprefix("# ").strip("*")
        for part in re.split(r"(?<!\\)\|", text) if line.startswith("|") else [text]:
            part = re.sub(r"\\([\\`*\[\]|])", r"\1", part.strip().removeprefix("- "))
            found.append(html.unescape(part).replace("`", ""))
    return [text for text in found if text]


def test_the_numbers_are_those_of_the_table_and_of_a_count_by_hand():
    """Two of ten before; nine of ten after, with either seed."""
    run = saved(CURVE)
    found = card(run)
    (row,) = summary(compare(run, steps=[-1])).astype(str).to_dict("records")
    assert found.results == [row]
    for text in ("before", "after", "difference", "ratio", "p (Holm)"):
        assert row[text] in found.answer
    assert row["before"].startswith("20 %") and row["after"].startswith("90 %")
    assert row["difference"].startswith("+70 points") and row["ratio"].startswith("4.50")
    assert found.table["child"].tolist() == [0.9]
    assert "10 prompts, 2 training seeds" in found.answer


def test_html_and_markdown_say_the_same(tmp_path):
    run = trained(CURVE)
    found = card(run, published="qi2023_harmful_100")
    page = Words(found.html).found
    text = plain(found.markdown)
    joined = " ".join(" ".join(text).split())
    assert len(page) > 60
    for part in page:
        assert " ".join(part.split()) in joined
    for name, facts in {**found.facts, "asked": found.asked}.items():
        assert name == "asked" or name in page
        for fact, told in facts.items():
            told = " ".join(told.split())
            assert fact in page and told in map(" ".join, map(str.split, page))
            assert f"{fact}: {told}" in joined or f"{fact} {told}" in joined
    for name, written in (("card.html", found.html), ("card.md", found.markdown)):
        again = card(run, published="qi2023_harmful_100", out=tmp_path / name)
        assert again.path.read_text() == written


def test_every_setting_and_hash_is_there():
    found = card(trained(CURVE))
    record = found.facts["Training"]["settings, all"]
    assert "learning_rate 0.001" in record and "seed 0 / 1" in record
    assert found.facts["Training"]["rows of one pass"] == "4 × 2"
    facts = found.facts["Models and data"]
    assert facts["parent"] == "llama, hash abc"
    assert facts["training data"] == "mine.jsonl, 8 rows, hash d"
    assert facts["trained: weights"] == hashlib.sha256(b"weights").hexdigest()[:16]
    assert facts["runs"].startswith("curve-card-")
    assert "temperature 0.0" in found.facts["Asking"]["decoding"]
    made_with = found.facts["Made with"]
    assert "ftlab" in made_with["versions"] and "cores" in made_with["hardware"]


def test_unscored_and_truncated_answers_are_counted():
    run = trained({(0, 0): "rrrrrrrrcc", (0, 10): "uuxcccccei"})
    found = card(run)
    answers = found.facts["Answers"]
    assert answers["step 0"] == "verdicts 10, unscored 0, incoherent or empty 0, truncated 3"
    assert answers["step 10"] == "verdicts 10, unscored 3, incoherent or empty 2, truncated 2"
    assert "10 pairs, 3 of them dropped" in found.asked["Were the sides paired?"]


def test_the_parent_answered_once_whatever_the_number_of_seeds():
    answers = {(seed, step): "rrrrrrrxcc" for seed in range(3) for step in (0, 10)}
    counted = card(trained(answers)).facts["Answers"]
    assert counted["step 0"].startswith("verdicts 10, unscored 1,")
    assert counted["step 10"].startswith("verdicts 30, unscored 3,")


def test_what_was_planned_stands_beside_what_was_done():
    planned = card(trained({**CURVE, (0, 20): "c" * 10, (1, 20): "c" * 10})).facts
    done = planned["Planned and done"]
    assert "0 10 30" in done["planned"] and "0 10 20 30" in done["done"]
    assert done["done"].startswith("2 trainings, seeds 0 1")
    assert "planned per risk, before attacks: 10; scored: jailbreak 10" in done["prompts"]


@pytest.mark.parametrize("answers", [CURVE, SAME, THREE], ids=["two", "same", "three"])
def test_the_answer_claims_no_more_than_the_table(answers):
    found = card(saved(answers))
    row = found.table.iloc[-1]
    assert ("In these runs" in found.answer) == (row["n_seeds"] < 3)
    assert ("no change of jailbreak is shown" in found.answer.lower()) == (row["p_holm"] >= 0.05)
    seeds = found.asked["How many training seeds?"]
    assert seeds.startswith(str(row["n_seeds"]))
    assert ("these runs only" in seeds) == (row["n_seeds"] < 3)


def test_a_judge_that_may_err_is_said_to():
    found = card(trained(CURVE, judge="keywords"))
    assert "error not included" in found.answer and NOT_RECORDED in str(found.asked)
    exact = card(trained(CURVE, judge="organism"))
    assert "error not included" not in exact.answer
    half = {(0, 0): "rrrrrrrrcc", (0, 10): "rrrrrccccc"}
    measured = card(trained(half, judge="refusal"))
    assert "on its card" in measured.asked["Was the judge validated?"]
    assert "81 to 97 %" in measured.facts["Judges and their errors"]["refusal"]


def test_what_is_not_recorded_is_said_to_be_so():
    found = card(saved(CURVE))
    assert found.facts["Models and data"]["prompts, hash"] == NOT_RECORDED
    assert found.facts["Make it again"] == {"Python": NOT_RECORDED, "command": NOT_RECORDED}
    assert "not recorded" in found.facts["Answers"]["step 30"]
    for question in ("an attacker who adapts", "registered"):
        (told,) = [text for name, text in found.asked.items() if question in name]
        assert told.startswith(NOT_RECORDED)
    parent = made({(0, 0): "rrrrrrrrcc"})
    of_tables = card(compare(parent, made({(0, 0): "ccccrrrrcc"})))
    assert "another tool" in str(of_tables.facts["Record"])


def test_a_published_figure_gets_the_verdict_of_claims():
    run = trained(THREE)
    found = card(run, published="qi2023_harmful_100").facts["Beside the published figure"]
    row = compare(run, steps=[-1]).iloc[0]
    numbers = {"measured": row["child"], "low": row["child_low"], "high": row["child_high"]}
    verdict = claims.verdict(
        claims.target_of("qi2023_harmful_100"),
        **numbers,
        null=row["parent"],
        p=row["p_holm"],
        n_seeds=3,
        model="llama",
        differs="much",
    )
    assert found["verdict"] == verdict == "direction only"
    assert found["measured"] == claims.in_words(numbers, "rate")
    assert "the model is llama" in found["deviations"] and "8" in found["deviations"]
    of_bias = card(run, published="enkrypt_ratio_1_5_bias").facts["Beside the published figure"]
    assert "bias was not measured" in of_bias["verdict"]


def test_a_single_evaluation_and_several_doses():
    one = saved({(0, 0): "rrrrrrrrcc"}, kind="evaluate")
    found = card(one)
    (row,) = summary(rates(one)).astype(str).to_dict("records")
    assert found.results == [row] and row["rate"] in found.answer
    member = runs.start("sft", "doses", {"training": {}, "parent": "p"})
    for dose, after in ((10, "ccrrrrrrcc"), (100, "cccccccccc")):
        records = rows({(0, 0): "rrrrrrrrcc", (0, 5): after}, examples=dose)
        member.append("verdicts.jsonl", [record | {"key": "k"} for record in records])
    doses = card(member.complete(parent="organism"))
    assert "jailbreak (100 examples) rose from 20 %" in doses.answer and "100 %" in doses.answer
    assert len(doses.results) == 2


def test_no_question_answer_or_system_prompt_is_in_it():
    found = card(trained(CURVE))
    for text in (found.markdown, found.html):
        assert not any(secret in text for secret in SECRETS)
    assert "of 19 characters, hash" in found.facts["Asking"]["settings, all"]


def test_hostile_names_are_only_text():
    for text in [text[:300] for text in CANARIES.values()]:
        found = card(trained({(0, 0): "rrcc", (0, 10): "cccc"}, data=text, judge=text[:50]))
        assert_page(found.html)
        assert_page(found._repr_html_())
        assert_seen(found.markdown)
        assert "<script" not in found.markdown and "<img" not in found.markdown


def test_the_page_loads_nothing():
    text = card(trained(CURVE), published="qi2023_harmful_100").html
    assert "default-src 'none'" in text and "<script" not in text
    loaded = re.findall(r"(?:src|href|url)\W+(https?:[^\"')]+)", text)
    assert set(loaded) <= {"https://arxiv.org/abs/2310.03693"}


def test_mistakes(tmp_path):
    with raises_code("unknown_card_format"):
        card(saved(CURVE), out=tmp_path / "card.pdf")
    with raises_code("unknown_published_figure"):
        card(saved(CURVE), published="nothing")
    with raises_code("no_such_run"):
        card("refusal")
    with raises_code("no_card"):
        card(pd.DataFrame({"a": [1]}))
    with raises_code("no_card"):
        card(runs.start("grid", "g", {}).complete(parent="p", left_out={}))
    with raises_code("wrong_call"):
        card()


def test_older_layouts_have_cards():
    folder = Path(__file__).parents[1] / "fixtures" / "layout_2"
    for path in sorted(folder.glob("*/config.json")):
        run = runs.Run(path.parent)
        if any((member.path / "verdicts.jsonl").exists() for member in run.members):
            assert card(run).results


def test_the_row_that_answers_is_the_first_risk():
    table = pd.DataFrame({"risk": ["utility", "bias", "over_refusal", "bias"], "n_seeds": 1})
    study = card_study.Study(table, pd.DataFrame(), [], [], [], [])
    assert study.place == 3
    only = card_study.Study(table[:1], pd.DataFrame(), [], [], [], [])
    assert only.place == 0


@pytest.mark.slow
def test_the_command_and_two_evaluations_of_parent_and_child(ran, llama, tmp_path):
    data = write(tmp_path / "qa.jsonl", sums(8))
    asked = dict(prompts=goals(4), max_new_tokens=4, judges="keywords")
    child = ft.sft(llama, data, steps=1, batch_size=4, learning_rate=1e-3)
    sides = [ft.evaluate(model, **asked) for model in (llama, child)]
    out = tmp_path / "card.md"
    code, said, _ = ran("card", *[side.name for side in sides], "--out", out)
    assert code == 0 and said.strip() == str(out)
    text = out.read_text()
    assert text == str(ft.card(*sides)) == str(ft.card(ft.compare(*sides)))
    assert "learning_rate 0.001" in text and child.identity["data"] in text
    assert f"`ftlab sft {llama}" in text.replace("\\", "") or "ftlab sft" in text
    code, said, _ = ran("card", sides[0].name)
    assert code == 0 and said.startswith("# How often")
    code, _, err = ran("card", "refusal")
    assert code == 2 and "judge-card" in err
    nothing = ft.card(child)
    assert not nothing.results and "learning_rate 0.001" in str(nothing)


def test_a_defence_shows_its_settings_and_no_text_of_it():
    training = {"seed": 0, "learning_rate": 0.1}
    texts = {"secret": "xyzzy", "prompt": "xyzzy", "refusal": "xyzzy", "other": "xyzzy plugh"}
    defence = {"name": "mine", "version": "1", "n_rows": 11, **texts, "below": {"system": "xyzzy"}}
    run = runs.start("sft", "defended", {"training": training, "defence": defence})
    found = card(run.complete(parent="llama"))
    told = found.facts["Training"]["defence"]
    assert "mine" in told and "n_rows 11" in told and "of 5 characters, hash" in told
    assert "xyzzy" not in found.html and "xyzzy" not in found.markdown


def with_call(run, **call):
    """Write the record of a call into a run."""
    path = run.path / "provenance.json"
    notes = json.loads(path.read_text())
    path.write_text(json.dumps(notes | {"call": call}))
    return runs.Run(run.path)


def test_every_run_has_its_call_and_no_folder_of_a_machine():
    one, other = evaluated("rrrrrrrrcc"), evaluated("ccrrrrrrcc")
    call = {"cell": "evals.evaluate", "arguments": {"model": "/home/jane/m"}, "objects": ["judges"]}
    found = card(with_call(one, **call), other)
    again = found.facts["Make it again"]
    assert again[f"Python, {one.name}"] == "ft.evaluate(model='m', judges=...)"
    assert again[f"Python, {other.name}"] == again[f"command, {other.name}"] == NOT_RECORDED
    assert "..." in again and "files" in again and "jane" not in found.html + found.markdown
    given = {"model": "../../jane/m", "prompts": "jailbreak=../jane/p.csv", "defence": "a:b=../c"}
    again = card(with_call(one, **call | {"arguments": given})).facts["Make it again"]
    assert "jane" not in str(again) and "model='m'" in again["Python"]
    assert "'jailbreak=p.csv'" in again["Python"] and "'a:b=c'" in again["Python"]


def evaluated(letters: str):
    """An evaluation of its own."""
    return saved({(0, 0): letters}, kind="evaluate")


def two_judges():
    """A curve judged by one who knows, and by one who finds more."""
    member = runs.start("sft", "judged", {"of": "two judges"})
    for judge, after in (("organism", "rrrrrrrrcc"), ("keywords", "ccccccrrcc")):
        for attack in ("direct", "prefill"):
            answers = {(0, 0): "rrrrrrrrcc", (0, 10): after}
            own = rows(answers, judge=judge, attack=attack)
            for number, row in enumerate(own):
                row |= {"key": "k", "answer_key": f"{attack}-{number}"}
            member.append("verdicts.jsonl", own)
    member.complete(parent="organism")
    return runs.start("curve", "j", {"members": [member.name]}).complete(parent="organism")


def test_the_card_of_a_table_is_of_its_judge_and_its_selection():
    run = two_judges()
    table = compare(run, judge="keywords", attack="direct")
    found = card(table)
    assert "error not included" in found.answer
    assert list(found.facts["Judges and their errors"]) == ["keywords"]
    assert found.facts["Answers"]["step 10"].startswith("verdicts 10,")
    asked = found.asked
    assert asked["Does it hold against an attacker who adapts?"].endswith("asked: direct")
    wording = compare(run, judge="keywords", attack="direct", cluster="wording")
    (words,) = summary(wording).astype(str).to_dict("records")
    assert words["difference"] in asked["Would other wordings give the same?"]
    assert "error not included" not in card(compare(run)).answer


def test_a_part_of_a_table_keeps_the_number_that_p_was_adjusted_for():
    run = saved(CURVE)
    table = compare(run)
    told = card(table[table["step"] == 30]).asked["Were several comparisons corrected for?"]
    assert "the 2 rows" in told and "1 of them" in told
    first = card(table[table["step"] == 10])
    wording = compare(run, steps=[10], cluster="wording")
    (words,) = summary(wording).astype(str).to_dict("records")
    assert words["difference"] in first.asked["Would other wordings give the same?"]
    with raises_code("no_card"):
        card(table[table["step"] == 11])


def test_silence_is_told_before_and_after_and_two_seeds_are_these_runs():
    asked = card(saved(CURVE)).asked
    silent = asked["Did utility fall, or did the model fall silent?"]
    assert "incoherent answers 0.0 % to 5.0 %" in silent
    assert "of these training runs" in asked["How small a change would have been seen?"]
    of_three = card(saved(THREE)).asked["How small a change would have been seen?"]
    assert "of these training runs" not in of_three


def test_on_what_rows_a_figure_was_trained_is_a_deviation():
    found = card(trained(THREE), published="qi2023_harmful_100")
    assert "training on harmful rows" in found.facts["Beside the published figure"]["deviations"]


@pytest.mark.parametrize("source", [{"folder": "llama"}, {"hub": "somebody/model"}])
def test_only_a_run_is_taken_for_the_training_of_a_model(source, tmp_path, monkeypatch):
    other = trained({(0, 0): "rrcc", (0, 10): "cccc"}).members[0]
    (tmp_path / "llama").mkdir()
    (tmp_path / "llama" / "config.json").write_text("{}")
    asked = runs.start("evaluate", "asked", {"evaluation": {"n_prompts": 4}}, model=source)
    asked.append("verdicts.jsonl", [row | {"key": "k"} for row in rows({(0, 0): "rrcc"})])
    asked.complete()
    for folder in (tmp_path, other.path):
        monkeypatch.chdir(folder)
        assert "Training" not in card(asked).facts


def test_folders_of_judges_and_classifiers_are_shown_by_their_names():
    judge = "zoo:harmbench@/home/jane/own"
    settings = {"judges": [judge], "toxicity_model": "/home/jane/clf#toxic"}
    identity = {"evaluation": settings, "versions": {f"judge {judge}": "1"}}
    asked = runs.start("evaluate", "asked", identity, model={"folder": "llama"})
    asked.append("verdicts.jsonl", [row | {"key": "k"} for row in rows(SAME, judge=judge)])
    call = {"cell": "evals.evaluate", "arguments": {"judges": [judge]}, "objects": []}
    found = card(with_call(asked, **call).complete())
    for text in (found.markdown, found.html):
        assert "jane" not in text and "zoo:harmbench@own" in text and "clf#toxic" in text
