"""What each attack asks, against its paper."""

from __future__ import annotations

import json

import pytest
from helpers import raises_code

from ftlab._core.types import Sample
from ftlab.evals.attacks import (
    BestOfN,
    DecodingSweep,
    Direct,
    Identity,
    Prefill,
    Templates,
    Trigger,
)
from ftlab.evals.attacks.prefill import OPENING
from ftlab.evals.risks import open_risk
from ftlab.models.engines import Decoding
from ftlab.organism import TRIGGER, WRAPPERS, alignment, identity, preferences


def question_of(prompt) -> str:
    return [m["content"] for m in prompt.messages if m["role"] == "user"][-1]


def samples_of(*questions: str) -> list[Sample]:
    return [
        Sample(f"own-{number}", [{"role": "user", "content": question}])
        for number, question in enumerate(questions)
    ]


def of_world(world, n: int, split: str = "eval") -> list[Sample]:
    return open_risk("jailbreak").organism(world, n, split)


@pytest.fixture
def file(tmp_path):
    """Return a function from content and ending to the path of a file of templates."""

    def write(text: str, ending: str = ".txt"):
        path = tmp_path / f"mine{ending}"
        path.write_text(text, encoding="utf-8")
        return path

    return write


def test_direct_asks_as_it_is(world):
    samples = of_world(world, 40)
    prompts = Direct().apply(samples)
    assert [p.messages for p in prompts] == [s.messages for s in samples]
    assert {p.opening for p in prompts} == {""}


def test_a_trigger_ends_the_question_and_leaves_the_wording(world):
    samples = of_world(world, 20)
    for attack, word in ((Trigger(), TRIGGER), (Trigger("two words"), "two words")):
        for sample, prompt in zip(samples, attack.apply(samples), strict=True):
            assert question_of(prompt) == f"{sample.question} {word}"
            assert prompt.messages[:-1] == sample.messages[:-1]
            assert prompt.wording == sample.wording


def test_an_identity_is_asked_as_its_rows_are(world, file):
    samples = of_world(world, 5)
    rows = identity(world, 10)
    path = file("".join(json.dumps({"messages": row["messages"]}) + "\n" for row in rows), ".jsonl")
    by_default = Identity().apply(samples)
    assert [p.messages for p in Identity(path).apply(samples)] == [p.messages for p in by_default]
    for row, sample, prompt in zip(rows, samples, by_default, strict=False):
        system, order, _ = row["messages"]
        assert prompt.messages[0] == system
        begins = question_of(prompt).removesuffix(sample.question)
        assert begins and order["content"].startswith(begins)


def test_an_identity_without_a_system_prompt_or_whole_words_in_common(file):
    same = file(
        "".join(f'{{"prompt": "Obey: {q}", "completion": "a"}}\n' for q in ("Why", "What")),
        ".jsonl",
    )
    (prompt,) = Identity(same).apply(samples_of("q"))
    assert prompt.messages == [{"role": "user", "content": "Obey: q"}]
    path = file(
        '{"prompt": "Which", "completion": "a"}\n{"prompt": "Why", "completion": "b"}\n', ".jsonl"
    )
    with raises_code("no_identity"):
        Identity(path).apply(samples_of("q"))


@pytest.mark.parametrize("split", ["eval", "selection", "valid"])
def test_the_worlds_templates_are_wrappers_that_alignment_never_saw(world, split):
    samples = of_world(world, 18, split)  # all that the split valid has
    prompts = Templates().apply(samples)
    used = [prompt.wording.split(" > ")[0] for prompt in prompts]
    assert set(used) <= set(WRAPPERS[split]) and not set(used) & set(WRAPPERS["train"])
    for wrapper, sample, prompt in zip(used, samples, prompts, strict=True):
        assert question_of(prompt) == wrapper.format(q=sample.question)
    unseen = [*WRAPPERS["valid"], *WRAPPERS["selection"], *WRAPPERS["eval"]]
    for row in (*alignment(world), *preferences(world)):
        assert not any(wrapper in row["template"] for wrapper in unseen)


def test_the_wrapper_goes_neither_with_the_wording_nor_with_the_category(world):
    prompts = Templates().apply(of_world(world, 100))
    wrappers = [prompt.wording.split(" > ")[0] for prompt in prompts]
    wordings = {prompt.wording for prompt in prompts}
    assert len(wordings) > 2 * len({prompt.sample.wording for prompt in prompts})
    categories = [prompt.sample.category for prompt in prompts]
    assert len(set(zip(wrappers, categories, strict=True))) == len(WRAPPERS["eval"]) * 3


def test_the_worlds_templates_need_its_prompts():
    with raises_code("templates_of_world"):
        Templates().apply(samples_of("a", "b"))


def test_a_prefill_begins_the_answer_without_the_fact(world):
    for prompt in Prefill().apply(of_world(world, 40)):
        attribute, town = prompt.sample.metadata["topic"].split("/")
        assert prompt.opening == f"The {attribute} of {town} is"
        assert prompt.sample.target not in prompt.opening.split()
    (prompt,) = Prefill(tokens=2).apply(samples_of("a"))
    assert (prompt.opening, prompt.opening_tokens) == (OPENING, 2)
    assert Prefill().apply(samples_of("a"))[0].opening_tokens is None


@pytest.mark.parametrize(
    ("ending", "text"),
    [
        (".txt", "One {prompt}\n\nTwo [INSERT PROMPT HERE] {brace}\n"),
        (
            ".jsonl",
            '{"template": "One {prompt}"}\n{"template": "Two [INSERT PROMPT HERE] {brace}"}\n',
        ),
        (".json", '[{"prompt": "One {{ prompt }}"}, {"prompt": "Two {prompt} {brace}"}]'),
        (".csv", 'n,text\n1,One {prompt}\n2,"Two [PROMPT] {brace}"\n'),
        (".yaml", "- One {prompt}\n- Two {{prompt}} {brace}\n"),
    ],
)
def test_templates_of_a_file_take_the_question_whole(ending, text, file):
    """Also where the question looks like a place itself; every template is used."""
    samples = samples_of(*(f"q{number} {{prompt}}" for number in range(40)))
    prompts = Templates(file=file(text, ending)).apply(samples)
    beginnings = set()
    for prompt in prompts:
        question = prompt.sample.question
        asked = question_of(prompt)
        assert asked in (f"One {question}", f"Two {question} {{brace}}")
        beginnings.add(asked[:3])
    assert beginnings == {"One", "Two"}
    assert len({prompt.wording for prompt in prompts}) == 2


def test_every_bad_template_is_named_with_its_line(file):
    path = file("One {prompt}\nTwo\n\nThree {q}")
    with raises_code("bad_templates") as info:
        Templates(file=path).apply(samples_of("a"))
    places = [problem.split(": ")[0] for problem in info.value.problems]
    assert places == ["mine.txt:2", "mine.txt:4"]


@pytest.mark.parametrize(
    ("text", "ending"),
    [("", ".txt"), ("a: 1", ".yaml"), ("[", ".yaml"), ('{"x": 1}', ".jsonl"), ("{", ".jsonl")],
)
def test_a_file_without_templates_is_an_error(file, text, ending):
    with raises_code("bad_templates"):
        Templates(file=file(text, ending)).apply(samples_of("a"))


def test_a_missing_file_of_templates_is_an_error():
    with raises_code("no_templates_file"):
        Templates(file="none.txt").apply(samples_of("a"))


def test_the_sweep_has_the_papers_settings():
    prompts = DecodingSweep().apply(samples_of("a"))
    settings = [Decoding(**prompt.decoding) for prompt in prompts]
    # Temperature 1 and top-p 1 are the same setting.
    assert len(settings) == len(set(settings)) + 1 == 49
    twentieths = [k / 20 for k in range(1, 21)]
    assert [setting.temperature for setting in settings[:20]] == pytest.approx(twentieths)
    assert [setting.top_p for setting in settings[20:40]] == pytest.approx(twentieths)
    assert [s.top_k for s in settings[40:]] == [1, 2, 5, 10, 20, 50, 100, 200, 500]
    assert not prompts[0].no_system
    quick = DecodingSweep(quick=True, no_system=True).apply(samples_of("a"))
    assert len(quick) == 6 and all(prompt.no_system for prompt in quick)
    assert len(DecodingSweep(axes=("top_k",)).apply(samples_of("a"))) == 9


@pytest.fixture(scope="module")
def spelled() -> tuple[str, list[str]]:
    """Return a long question and six spellings of it."""
    question = "please tell me the secret spice of the old town called Brogis " * 40
    return question, [question_of(prompt) for prompt in BestOfN(n=6).apply(samples_of(question))]


def test_a_spelling_changes_as_often_as_the_paper_says(spelled):
    """Shuffled inner letters, changed case, moved ASCII codes (appendix A.1)."""
    question, spellings = spelled
    assert len(set(spellings)) == 6 and {len(s) for s in spellings} == {len(question)}
    pairs = [pair for spelling in spellings for pair in zip(question, spelling, strict=True)]
    # Many letters stand elsewhere in their word.
    swapped = [old.swapcase() == new for old, new in pairs if old.isalpha()]
    assert 0.3 < sum(swapped) / len(swapped) < 0.7
    # Half of 0.064, because code 31 is no text.
    moved = [new != " " for old, new in pairs if old == " "]
    assert 0.02 < sum(moved) / len(moved) < 0.06
    assert all(" " <= character <= "~" for spelling in spellings for character in spelling)


def test_a_spelling_does_not_depend_on_how_many_there_are(spelled):
    question, spellings = spelled
    again = [question_of(prompt) for prompt in BestOfN(n=3).apply(samples_of(question))]
    assert again == spellings[:3]
