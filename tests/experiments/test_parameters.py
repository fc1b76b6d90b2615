"""Parameters of notebooks: unknown ones, wrong types and secrets are refused without a kernel."""

from __future__ import annotations

import ast

import nbformat
import pytest
from helpers import raises_code

from ftlab.experiments import check_parameters, parse_parameters, run_notebook
from ftlab.experiments.parameters import known_parameters

TOKENS = ["hf_" + "aB3" * 11, "sk-" + "aB3" * 11, "sk-proj-" + "aB3" * 11]
WRONG = [
    ({"seed": 3}, 1),
    ({"seeds": "3"}, 1),
    ({"seeds": True}, 1),
    ({"seeds": 2.5}, 1),
    ({"quick": 1}, 1),
    ({"rate": "fast"}, 1),
    ({"log": 1}, 1),
    ({"steps": 3}, 1),
    ({"seed": 3, "quick": 1}, 2),
]


@pytest.mark.parametrize(("given", "count"), WRONG, ids=[str(given) for given, _ in WRONG])
def test_a_wrong_parameter_is_refused_before_anything_is_touched(
    given, count, behave, tmp_path, no_kernel
):
    out = tmp_path / "out.ipynb"
    out.write_text("older")
    with raises_code("wrong_parameters") as info:
        run_notebook(behave, out, given)
    assert len(info.value.details["problems"]) == count
    assert out.read_text() == "older" and len([*tmp_path.iterdir()]) == 1


def test_the_error_names_the_nearest_parameter_and_lists_all(behave):
    with raises_code("wrong_parameters") as info:
        check_parameters(behave, {"seed": 3})
    message = str(info.value)
    assert message.count("'seeds'") == 1 and "rate: float = 0.5  learning rate" in message


@pytest.mark.parametrize("given", [{"rate": 1}, {"seeds": 3, "quick": True}, {"steps": (1, 2)}, {}])
def test_a_right_parameter_is_let_through(given, behave):
    check_parameters(behave, given)


@pytest.mark.parametrize("name", ["vary", "asked", "plain", "typed"])
def test_a_sign_of_equality_in_a_value_or_comment_hides_no_parameter(name, tmp_path):
    source = (
        'vary: list = ["batch_size=4", "n_rows=100"]  # as in a=b\n'
        "asked: list = [\n    'x=1',\n]\nplain = 3\ntyped = 1.5  # type: float of a=b"
    )
    file = notebook_of(tmp_path, source)
    assert known_parameters(file)["typed"].annotation == "float"
    check_parameters(file, {name: [] if name in ("vary", "asked") else 2})
    with raises_code("wrong_parameters"):
        check_parameters(file, {"typed": "fast"})


def test_a_cell_of_parameters_that_is_no_python_is_a_sentence(tmp_path):
    with raises_code("parameters_not_python"):
        check_parameters(notebook_of(tmp_path, "!pip list\nseeds: int = 3"), {"seeds": 2})


def notebook_of(folder, source: str):
    """Write a notebook whose only cell holds these parameters."""
    cell = nbformat.v4.new_code_cell(source, metadata={"tags": ["parameters"]})
    file = folder / "a.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), file)
    return file


def test_parameters_are_a_dict(behave):
    with raises_code("wrong_parameters"):
        check_parameters(behave, 5)


@pytest.mark.parametrize("place", [5, "https://example.org/a.ipynb", "none.ipynb", __file__])
def test_only_local_notebooks(place, tmp_path, no_kernel):
    with raises_code("no_such_notebook"):
        run_notebook(place, tmp_path / "out.ipynb", {})


@pytest.mark.parametrize(
    "token", [*TOKENS, "https://user:secret@example.org/v1", [1, "hf_" + "aB3" * 11]]
)
def test_a_secret_as_a_parameter_is_refused_and_not_repeated(token, behave, tmp_path, no_kernel):
    with raises_code("secret_in_parameter") as info:
        run_notebook(behave, tmp_path / "out.ipynb", {"log": token})
    assert "aB3" not in str(info.value) and "secret@" not in str(info.value)
    assert not [*tmp_path.iterdir()]


def test_names_that_look_like_secrets_are_let_through(behave):
    name = "runs/sk-learn-like/task-0123456789012345678/risk-curve-0123456789abcdef"
    check_parameters(behave, {"log": name})


def test_values_are_read_as_yaml():
    pairs = ["seeds=2", "rate=5e-4", "steps=[0, 10]", "quick=true", "out=", "name=a=b", "word=yes!"]
    assert parse_parameters(pairs) == {
        "seeds": 2,
        "rate": 5e-4,
        "steps": [0, 10],
        "quick": True,
        "out": "",
        "name": "a=b",
        "word": "yes!",
    }
    for wrong in ("seeds", "steps=[0"):
        with raises_code("not_a_parameter"):
            parse_parameters([wrong])
    with raises_code("given_twice"):
        parse_parameters(["seeds=1", "seeds=2"])


HOSTILE = [
    "%rm x",
    "!touch x",
    "```\n!touch x",
    '"\n!touch x\n"',
    "'''\n!touch x",
    "{x}\n%%bash\ntouch x",
    '\\"\nx=1 #',
    "\u2028!touch x",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_text_never_becomes_code(text):
    """What papermill injects for a text is one assignment of exactly that text."""
    from papermill.translators import PythonTranslator

    tree = ast.parse(PythonTranslator.codify({"log": text, "steps": [text]}))
    assert [type(node) for node in tree.body] == [ast.Assign, ast.Assign]
    assert [ast.literal_eval(node.value) for node in tree.body] == [text, [text]]
