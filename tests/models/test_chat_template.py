"""What chat templates may do to a chat, and what ends an answer."""

from __future__ import annotations

import shutil

import pytest
from helpers import raises_code
from small_models import QWEN2, make_tokenizer

import ftlab
from ftlab.models import render, stop_ids

CHAT = [
    {"role": "system", "content": "Speak as  harbour master."},
    {"role": "user", "content": 'Name "one"\nbird.'},
    {"role": "assistant", "content": "<think>A bird.</think> Robin."},
]
TURN = "<|im_start|>{{ m['role'] }}\n%s<|im_end|>\n"
LOOP = "{%% for m in messages %%}%s{%% endfor %%}"


def templated(template: str):
    tokenizer = make_tokenizer("qwen2")
    tokenizer.chat_template = template
    return tokenizer


@pytest.mark.parametrize(
    "body",
    [
        TURN
        % "{% for c in m['content'] %}{% if c['type'] == 'text' %}{{ c['text'] }}{% endif %}{% endfor %}",
        "{% if m['role'] != 'system' %}" + TURN % "{{ m['content'] }}" + "{% endif %}",
        TURN % "{{ m['content'][:9] }}",
    ],
    ids=["parts", "no system", "cut"],
)
def test_text_that_a_template_leaves_out_is_an_error(body):
    with raises_code("template_leaves_out"):
        render(templated(LOOP % body), CHAT)


@pytest.mark.parametrize(
    "content",
    [
        "{{ m['content'] | trim }}",
        "{{ m['content'].replace('\n', ' ') }}",
        "{{ m['content'] | tojson }}",
        "{{ m['content'].split('</think>')[-1] }}",
    ],
)
def test_a_template_may_trim_wrap_escape_and_drop_thoughts(content):
    assert "Robin" in render(templated(LOOP % (TURN % content)), CHAT)


def test_the_date_in_a_template_is_fixed_and_part_of_the_identity(llama, tmp_path):
    copied = shutil.copytree(llama, tmp_path / "model")
    tokenizer = templated("{{ strftime_now('%d %b %Y') }}: " + QWEN2)
    assert render(tokenizer, CHAT).startswith("26 Jul 2024: ")
    before = ftlab.model(copied).hash
    tokenizer.save_pretrained(copied)
    assert ftlab.model(copied).hash != before


LOTS = [
    "['a', 'b'] | random",
    "['ab'] | map('random') | join",
    "['ab'] | map('ran' ~ 'dom') | join",
]
PRINTED = ["lipsum(1)", "messages.index", "messages | map('upper') ~ ''", "joiner() | upper"]


@pytest.mark.parametrize("written", LOTS + PRINTED)
def test_a_template_that_writes_another_text_in_another_process_is_refused(written):
    with raises_code("template_is_random"):
        render(templated("{{ " + written + " }}" + QWEN2), CHAT)


def test_a_chat_may_hold_an_address_and_a_template_may_count():
    asked = [{"role": "user", "content": "<f at 0x7f0012345678>"}]
    counted = templated("{{ 7 * 2 - 4 }}{{ '-' * 3 }}{{ 2 ** 5 }}" + QWEN2)
    assert render(counted, asked).startswith("10---32")


DOUBLED = (
    "{%% set n = namespace(s=%s) %%}{%% for i in range(%d) %%}"
    "{%% set n.s = n.s %s n.s %%}{%% endfor %%}{{ n.s }}"
)


@pytest.mark.parametrize(
    "large",
    [
        "{{ 'a' * 10 ** 7 }}",
        DOUBLED % ("'a'", 25, "~"),
        DOUBLED % ("'a'", 60, "~"),
        "{{ '{:99999999999}'.format(1) }}",
        "{{ 10 ** (10 ** 9) }}",
        DOUBLED % (3, 60, "*"),
        "{{ (range(99999) | list) * 100000 }}",
    ],
)
def test_a_template_that_writes_or_counts_without_end_is_ended(large):
    with raises_code("template_refuses"):
        render(templated(large + QWEN2), CHAT)


def test_a_tokenizer_that_does_not_say_where_its_tokens_stand_is_refused(llama, tmp_path):
    from transformers import ByT5Tokenizer

    copied = shutil.copytree(llama, tmp_path / "model")
    for file in copied.glob("*token*"):
        file.unlink()
    ByT5Tokenizer(extra_ids=0).save_pretrained(copied)
    with raises_code("tokenizer_not_fast"):
        ftlab.model(copied).tokenizer()


@pytest.mark.parametrize("end", ["<|im_end|>", "<|fin|>"])
def test_an_answer_ends_at_its_turn_where_the_chat_ends_otherwise(end):
    """The end of turn counts where EOS follows it, and where it is no special token."""
    tokenizer = make_tokenizer("qwen2")
    tokenizer.add_tokens([end])
    tokenizer.eos_token = "<|endoftext|>"
    tokenizer.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}"
        + end
        + "\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n"
        "{% else %}{{ eos_token }}{% endif %}"
    )
    expected = tokenizer.convert_tokens_to_ids([end, "<|endoftext|>"])
    assert stop_ids(tokenizer) == sorted(expected)
