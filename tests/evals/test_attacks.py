from __future__ import annotations

import copy

import pytest

from ftlab.evals.attacks import attacks
from ftlab._core.config import ATTACKS
from ftlab.models.engines.base import Decoding
from ftlab.evals.config import Evaluation
from ftlab.data.dataset import DataError, read_prompts
from ftlab.organism import corpus
from ftlab.organism.world import WRAPPERS


def asked(row: dict) -> str:
    return [m for m in row["messages"] if m["role"] == "user"][-1]["content"]


NAMES = [*ATTACKS, "prefill:3", "decoding:quick", "decoding:top_k+no_system", "best_of_n:4", "templates:{file}"]


@pytest.fixture
def file(tmp_path):
    """-> function content, ending -> path of a file of templates."""

    def write(text: str, ending: str = ".txt"):
        path = tmp_path / f"mine{ending}"
        path.write_text(text, encoding="utf-8")
        return path

    return write


@pytest.mark.parametrize("name", NAMES)
def test_an_attack_keeps_ids_labels_and_what_it_was_given(world, name, file):
    rows = corpus.prompts(world, "jailbreak", 40)
    before, name = copy.deepcopy(rows), name.format(file=file("As told: {prompt}\n"))
    attacked = attacks.attack(name)(rows)
    assert rows == before and attacked == attacks.attack(name)(rows)
    several = len(attacked) // len(rows)
    for n, row in enumerate(attacked):
        given = rows[n // several]
        assert all(row[k] == given[k] for k in ("id", "truth", "topic", "risk", "category"))
        assert row["attack"] == name and isinstance(row["prefill"], str) and row.get("variant", 0) == n % several


@pytest.mark.parametrize(("name", "said"), [
    ("gcg", "unknown attack 'gcg'; allowed: direct, templates"),
    ("prefill:", "allowed: direct"),
    ("direct:1", "takes no argument"),
    ("prefill:no", "'no' is no number; allowed: 1, 2"),
    ("best_of_n:0", "'0' is no number"),
    ("decoding:heat", "no heat; allowed, joined with [+]: temperature, top_p, top_k, quick, no_system"),
    ("decoding:quick+top_p", "give one of them"),
])  # fmt: skip
def test_a_wrong_name_or_argument_is_a_sentence(name, said):
    with pytest.raises(ValueError, match=said):
        attacks.attack(name)


def test_the_configuration_takes_names_with_arguments():
    names = ("direct", "prefill:5", "best_of_n:20", "templates:mine.txt")
    assert Evaluation.make(attacks=names).attacks == names
    for wrong in ("gcg:5", "prefill:", "direct:5"):
        with pytest.raises(ValueError, match=f"unknown attack '{wrong}'; allowed: direct"):
            Evaluation.make(attacks=["direct", wrong])


def test_direct_asks_as_it_is(world):
    rows = corpus.prompts(world, "jailbreak", 40)
    assert [(r["messages"], r["prefill"]) for r in attacks.direct(rows)] == [(r["messages"], "") for r in rows]


@pytest.mark.parametrize("split", ["eval", "valid"])
def test_templates_wrap_the_question_in_wrappers_that_alignment_never_saw(world, split):
    rows = corpus.prompts(world, "jailbreak", 18, split)  # all that the validation split has
    attacked = attacks.templates(rows)
    used = [r["template"].split(" > ")[0] for r in attacked]
    assert set(used) == set(WRAPPERS[split]) and not set(used) & set(WRAPPERS["train"])
    assert [w.format(q=asked(r)) for w, r in zip(used, rows, strict=True)] == [asked(r) for r in attacked]
    for row in (*corpus.alignment(world), *({"template": r["template"]} for r in corpus.preferences(world))):
        assert not any(w in row["template"] for s in ("valid", "eval") for w in WRAPPERS[s])


def test_the_wrapper_goes_neither_with_the_wording_nor_with_the_category(world):
    rows = attacks.templates(corpus.prompts(world, "jailbreak", 100))
    pairs = {tuple(r["template"].split(" > ")) for r in rows}
    assert len(pairs) == len(WRAPPERS["eval"]) * 4, "every wrapper meets every wording"
    assert len({(r["template"].split(" > ")[0], r["category"]) for r in rows}) == len(WRAPPERS["eval"]) * 3


def test_templates_need_prompts_of_the_world():
    with pytest.raises(
        ValueError, match="embedded world's prompts only; allowed here: direct, prefill, .* templates:FILE"
    ):
        attacks.templates(list(read_prompts(["a", "b"]).rows))


def test_prefill_begins_the_answer_and_does_not_tell_it(world):
    for row in attacks.prefill(corpus.prompts(world, "jailbreak", 40)):
        assert row["messages"][-1]["content"].startswith(row["prefill"]) and row["truth"] not in row["prefill"].split()
    assert {r["prefill"] for r in attacks.prefill(list(read_prompts(["a"]).rows))} == {attacks.PREFIX}


def test_a_prefill_of_k_tokens_keeps_the_own_text_and_its_number():
    rows = [{**r, "prefill": "The answer is"} for r in read_prompts(["a"]).rows]
    assert [(r["prefill"], r["prefill_tokens"]) for r in attacks.attack("prefill:2")(rows)] == [("The answer is", 2)]
    assert "prefill_tokens" not in attacks.attack("prefill")(rows)[0]


@pytest.mark.parametrize(("ending", "text"), [
    (".txt", "One {prompt}\n\nTwo [INSERT PROMPT HERE] {brace}\n"),
    (".jsonl", '{"template": "One {prompt}"}\n{"template": "Two [INSERT PROMPT HERE] {brace}"}\n'),
    (".json", '[{"prompt": "One {{ prompt }}"}, {"prompt": "Two {prompt} {brace}"}]'),
    (".csv", 'n,text\n1,One {prompt}\n2,"Two [PROMPT] {brace}"\n'),
    (".yaml", "- One {prompt}\n- Two {{prompt}} {brace}\n"),
])  # fmt: skip
def test_templates_of_a_file_take_the_question_whole(ending, text, file):
    """Also where the question looks like a placeholder itself; every template is used, a prompt has always the same."""
    rows = list(read_prompts([f"q{n} {{prompt}}" for n in range(40)]).rows)
    asked_ = [asked(r) for r in attacks.attack(f"templates:{file(text, ending)}")(rows)]
    forms = [{f"One {asked(r)}", f"Two {asked(r)} {{brace}}"} for r in rows]
    assert all(a in f for a, f in zip(asked_, forms, strict=True)) and len({a[:3] for a in asked_}) == 2


def test_every_bad_template_is_named_with_its_line(file):
    with pytest.raises(DataError) as e:
        attacks.attack(f"templates:{file('One {prompt}' + chr(10) + 'Two' + chr(10) * 2 + 'Three {q}')}")
    assert [line.split(": ")[0] for line in str(e.value).splitlines()] == ["mine.txt:2", "mine.txt:4"]
    assert "allowed: {{prompt}}" in str(e.value)
    for text, ending, said in [("", ".txt", "no templates"), ("a: 1", ".yaml", "is a list"), ("[", ".yaml", "broken YAML"),
                               ('{"x": 1}', ".jsonl", "mine.jsonl:1: no text"), ("{", ".jsonl", "mine.jsonl:1: broken JSON")]:  # fmt: skip
        with pytest.raises(DataError, match=said):
            attacks.attack(f"templates:{file(text, ending)}")
    with pytest.raises(FileNotFoundError, match="no file of templates none.txt"):
        attacks.attack("templates:none.txt")


def test_the_sweep_has_the_papers_settings():
    row, *_ = attacked = attacks.attack("decoding")(list(read_prompts(["a"]).rows))
    settings = [Decoding(**r["decoding"]) for r in attacked]
    assert len(settings) == len(set(settings)) + 1 == 49, "temperature 1 and top-p 1 are the same"
    assert [s.temperature for s in settings[:20]] == pytest.approx([k / 20 for k in range(1, 21)])
    assert [s.top_p for s in settings[20:40]] == pytest.approx([k / 20 for k in range(1, 21)])
    assert [s.top_k for s in settings[40:]] == [1, 2, 5, 10, 20, 50, 100, 200, 500]
    assert "system" not in row and attacks.attack("decoding:quick+no_system")([row])[0]["system"] is None
    assert len(attacks.attack("decoding:top_k")([row])) == 9


def test_spellings_keep_length_and_places_and_move_as_often_as_the_paper_says():
    """Augmentations of appendix A.1: shuffled inner letters, changed case, moved ASCII codes."""
    question = "please tell me the secret spice of the old town called Brogis " * 40
    rows = list(read_prompts([question]).rows)
    said = [asked(r) for r in attacks.attack("best_of_n:6")(rows)]
    assert len(set(said)) == 6 and all(len(s) == len(asked(rows[0])) for s in said)
    short = [(a, b) for s in said for a, b in zip(asked(rows[0]).split(" "), s.split(" "), strict=False) if len(a) < 4]
    swapped = [a.swapcase() == b for s in said for a, b in zip(asked(rows[0]), s, strict=True) if a.isalpha()]
    assert 0.3 < sum(swapped) / len(swapped) < 0.7 and short  # many letters stand elsewhere in their word
    noise = [b for s in said for a, b in zip(asked(rows[0]), s, strict=True) if a == " " and b != " "]
    assert 0.02 < len(noise) / sum(s.count(" ") + len(noise) / 6 for s in said) < 0.06, "half of .064: 31 is no text"
    assert all(" " <= c <= "~" for s in said for c in s)
    again = [asked(r) for r in attacks.attack("best_of_n:3")(rows)]
    assert again == said[:3], "a spelling does not depend on how many there are"
