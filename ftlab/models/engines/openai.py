"""Models behind an OpenAI-compatible endpoint (extra `api`).

A reference is `api:MODEL@URL`, such as `api:qwen2.5-7b@http://127.0.0.1:8000/v1`. The key is read
from OPENAI_API_KEY when something is asked, sent to that server alone, and neither kept nor shown,
also where an answer repeats it. The `openai` client retries (429, 5xx, timeouts, lost connections)
with back-off and honours Retry-After; an unreachable server is reported within seconds. A reply
is bounded in size and time, and one without an answer in it is an error, never an empty answer.
"""

from __future__ import annotations

import json
import os
import re
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from ftlab._core.errors import UsageError
from ftlab._core.files import digest
from ftlab._core.progress import clock
from ftlab._core.text import redacted, safe, without_secrets
from ftlab._core.types import Answer, Message
from ftlab.models.engines.base import GREEDY, Collector, Decoding, Engine, OnAnswer

LONGEST = 300  # characters of an error that are kept
HUNG = 8  # requests in a row without an answer after which no others are sent
NOT_ASKED = f"not asked, because {HUNG} others in a row had no answer"
POLL_S = 1.0  # between two looks at what is overdue
LARGEST = 4 << 20  # bytes of a reply
REDIRECTS = 5  # followed in a row, within one server
CUT = ("length", "max_tokens")  # reasons for the end of an answer: the limit of tokens
WHOLE = (*CUT, "stop", "eos", "eos_token", "stop_sequence", "end_turn", "complete", "completed",
         "tool_calls", "function_call")  # fmt: skip
KEY = "OPENAI_API_KEY"
TEXT_OF_PART = {"text": "text", "output_text": "text", "refusal": "refusal"}  # by its type
THOUGHTS = ("thinking", "redacted_thinking", "reasoning", "reasoning_content", "reasoning_details")
UNSUPPORTED = {
    "choices": "an endpoint gives no likelihoods of choices",
    "openings": "an endpoint does not continue an answer that was begun",
    "screened": "an endpoint does not end an answer at a refusal",
}


class _Final(BaseException):
    """The answer to a request, or the error that ends all: no Exception, which would be retried.

    Args:
        outcome: An answer with `error`, or a UsageError.
    """

    def __init__(self, outcome: Answer | UsageError) -> None:
        super().__init__(outcome)
        self.outcome = outcome


@dataclass(frozen=True)
class Endpoint:
    """A model by URL and name.

    Args:
        url: Address up to `/v1`.
        model: The server's name of the model.
        retries: Tries after the first one.
        timeout: Seconds without a byte after which a try ends.
        limit: Seconds after which a reply that still trickles in is given up.
        parallel: Requests at a time.
    """

    url: str
    model: str
    retries: int = field(default=4, compare=False)
    timeout: float = field(default=60.0, compare=False)
    limit: float = field(default=300.0, compare=False)
    parallel: int = field(default=8, compare=False)
    is_organism = False
    adapter = None

    @property
    def name(self) -> str:
        return f"{self.model}@{urlsplit(self.url).netloc}"

    @property
    def source(self) -> dict[str, str]:
        """Where the answers come from, for provenance."""
        return {"endpoint": self.url, "model": self.model}

    @property
    def given_as(self) -> str:
        """What `model` takes to open it again."""
        return f"api:{self.model}@{self.url}"

    @property
    def hash(self) -> str:
        """Hash of URL and name. The weights behind them are not known, nor whether they stay."""
        return digest(["api", self.url, self.model])

    def answers(
        self,
        chats: Sequence[list[Message]],
        *,
        max_new_tokens: int,
        decoding: Decoding = GREEDY,
        seeds: Sequence[int | None] | None = None,
        each: OnAnswer | None = None,
    ) -> list[Answer]:
        """Return the answer to each chat, in the order given.

        Args:
            chats: Messages that end with the user's.
            max_new_tokens: Length of an answer in tokens, at most.
            decoding: Sent as temperature, top_p and top_k; what servers do with it differs.
            seeds: One per chat, sent where `decoding` has a temperature.
            each: Called with numbers of chats and their answers, as they come.

        Raises:
            UsageError: Where no request can succeed: `opening_unsupported`, `api_not_installed`,
                `endpoint_unreachable`, `endpoint_denied`, `endpoint_model_unknown`,
                `endpoint_redirects`, `endpoint_key_unusable`. A request that fails alone is an
                answer with `error`.
        """
        if any(chat[-1]["role"] == "assistant" for chat in chats):
            raise _opening_unsupported()
        settings: dict[str, Any] = {
            "max_tokens": max_new_tokens,
            "temperature": decoding.temperature,
        }
        if decoding.temperature:
            settings["top_p"] = decoding.top_p
            if decoding.top_k:
                settings["extra_body"] = {"top_k": decoding.top_k}
        calls = _Calls(self, settings)
        pool = ThreadPoolExecutor(self.parallel)
        found = {}
        try:
            numbers = {}
            for number, chat in enumerate(chats):
                seed = seeds[number] if seeds and decoding.temperature else None
                numbers[pool.submit(calls.ask, number, chat, seed)] = number
            for future in calls.as_they_end(numbers):
                number = numbers[future]
                ended = future.done() and not future.cancelled()
                found[number] = future.result() if ended else calls.given_up(number)
                if each:
                    each([number], [found[number]])
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
            calls.client.close()
        return [found[number] for number in range(len(chats))]


class _Calls:
    """Requests to one endpoint, which several threads send."""

    def __init__(self, endpoint: Endpoint, settings: dict[str, Any]) -> None:
        self.endpoint = endpoint
        self.settings = settings
        self.client = _client(endpoint)
        self.hung = 0  # requests in a row without an answer
        self.started: dict[int, float] = {}

    def as_they_end(self, numbers: dict[Future, int]) -> Iterator[Future]:
        """Yield requests as they end, and those that are overdue or will not be sent."""
        pending = set(numbers)
        while pending:
            done, pending = wait(pending, timeout=POLL_S, return_when=FIRST_COMPLETED)
            oldest = clock() - self.endpoint.limit
            late = {f for f in pending if self.started.get(numbers[f], oldest) < oldest}
            self.hung += len(late)
            if self.hung >= HUNG and not done:
                late |= {future for future in pending if future.cancel()}
            pending -= late
            yield from done
            yield from late

    def given_up(self, number: int) -> Answer:
        """Return the answer of a request that did not end."""
        if number in self.started:
            return _failed(f"no whole answer within {self.endpoint.limit:g} s")
        return _failed(NOT_ASKED)

    def ask(self, number: int, chat: list[Message], seed: int | None) -> Answer:
        """Return the answer to one chat; raise UsageError where no other could succeed."""
        import openai

        self.started[number] = clock()
        if self.hung >= HUNG:
            return _failed(NOT_ASKED)
        tries = self.endpoint.retries + 1
        try:
            answer = self._send(chat, seed)
        except openai.APITimeoutError:
            self.hung += 1
            return _failed(f"no answer within {self.endpoint.timeout:g} s, {tries} times")
        except openai.APIConnectionError as error:
            self.hung += 1
            return _failed(f"no connection, {tries} times ({_said(error.__cause__ or error)})")
        except openai.APIStatusError as error:
            answer = self._refused(error)
        except _Final as final:
            if isinstance(final.outcome, UsageError):
                raise final.outcome from None
            answer = final.outcome
        except UnicodeEncodeError:
            answer = _failed("the prompt holds half a character (an unpaired surrogate)")
        except Exception as error:  # broken JSON, or JSON of another shape
            answer = _failed(f"not a reply of the protocol ({type(error).__name__})")
        self.hung = 0
        return answer

    def _send(self, chat: list[Message], seed: int | None) -> Answer:
        messages = [{"role": m["role"], "content": m["content"]} for m in chat]
        settings = self.settings if seed is None else self.settings | {"seed": seed}
        reply = self.client.chat.completions.with_raw_response.create(
            model=self.endpoint.model, messages=messages, **settings
        )
        return _answer(json.loads(reply.http_response.content))

    def _refused(self, error: Any) -> Answer:
        """Return what one request met; raise UsageError where every other would meet it too."""
        url, model = self.endpoint.url, self.endpoint.model
        status = error.status_code
        said = _said(error)
        if status in (401, 403):
            message = f"{url} denies access to {model!r} ({status}: {said}). Set {KEY} to a key."
            raise UsageError("endpoint_denied", message) from None
        if status == 404:
            message = f"{url} does not know the model {model!r} ({said}). Give the server's name."
            raise UsageError("endpoint_model_unknown", message) from None
        return _failed(f"{status}: {said}")


def _answer(reply: dict[str, Any]) -> Answer:
    """Return the answer in a reply. One of another shape raises whatever it raises."""
    choices = reply.get("choices") or []
    for part in (reply, *choices):
        if part.get("error"):
            return _failed(f"the server reports an error ({_said(part['error'])})")
    if len(choices) != 1:
        return _failed(f"{len(choices)} answers to one question")
    [choice] = choices
    message = choice["message"]
    reason = (choice.get("finish_reason") or "stop").lower()
    if reason not in WHOLE:
        return _failed(f"the endpoint withheld the answer or broke it off ({_said(reason)})")
    content = message.get("content")
    text = _text(content)
    refusal = _text(message.get("refusal"))
    if text.strip() and refusal.strip():
        return _failed("an answer and a refusal in one reply")
    text = text or refusal
    thought = any(message.get(name) for name in THOUGHTS)
    called = message.get("tool_calls") or message.get("function_call")
    plain = isinstance(content, str) and reason == "stop"
    if thought and reason in CUT and not text.strip():
        return Answer("<think>", finish="length")  # a thought that was cut off
    if not text.strip() and (thought or called or not plain):
        return _failed(f"the endpoint said nothing ({_said(reason)})")
    usage = reply.get("usage")
    tokens = usage.get("completion_tokens") if isinstance(usage, dict) else 0
    return Answer(
        without_secrets(text),
        finish="length" if reason in CUT else "stop",
        tokens=tokens if type(tokens) is int and 0 < tokens < 2**31 else 0,
    )


def _text(content: Any) -> str:
    """Return the text of a message's content, which may come in parts; thoughts are left out."""
    if content is None or isinstance(content, str):
        return content or ""
    if not isinstance(content, list):
        raise TypeError(type(content))
    return "".join(filter(None, map(_text_of_part, content)))


def _text_of_part(part: dict[str, Any]) -> str | None:
    kind = part.get("type")
    if kind in TEXT_OF_PART:
        return part.get(TEXT_OF_PART[kind])
    if kind in THOUGHTS or "text" not in part:  # a picture, for example
        return None
    raise TypeError(kind)  # text of an unknown kind: without it the answer may say the opposite


def _client(endpoint: Endpoint) -> Any:
    try:
        from openai import DefaultHttpxClient, OpenAI, Timeout
    except ImportError:
        raise UsageError(
            "api_not_installed", "Models behind an endpoint need: pip install 'ftlab[api]'."
        ) from None

    class Client(DefaultHttpxClient):
        def send(self, request: Any, **how) -> Any:
            how |= {"stream": True, "follow_redirects": False}
            overdue = clock() + endpoint.limit
            for _ in range(REDIRECTS + 1):
                if self.is_closed:  # everybody was given up
                    raise _Final(_failed(NOT_ASKED))
                try:
                    response = super().send(request, **how)
                except Exception as error:
                    _raise_unreachable(endpoint, error)
                    raise
                if response.next_request is None:
                    return _read(response, endpoint, overdue)
                response.close()
                request = _redirected(request, response.next_request, endpoint)
            raise _Final(_failed("redirects without end"))

    return OpenAI(
        base_url=endpoint.url,
        api_key=_key(),
        max_retries=endpoint.retries,
        timeout=Timeout(endpoint.timeout, connect=min(5.0, endpoint.timeout)),
        default_headers={"Accept-Encoding": "identity"},
        http_client=Client(),
    )


def _key() -> str:
    key = os.environ.get(KEY, "").strip()
    if not key.isascii() or not key.isprintable():
        message = f"{KEY} holds a character that no header can. Copy the key again."
        raise UsageError("endpoint_key_unusable", message)
    return key or "none"  # local servers take any; the client wants one


def _raise_unreachable(endpoint: Endpoint, error: Exception) -> None:
    if type(error).__name__ in ("ConnectError", "ConnectTimeout"):
        said = _said(str(error) or type(error).__name__)
        message = f"No server answers at {endpoint.url} ({said}). Start it or correct the address."
        raise _Final(UsageError("endpoint_unreachable", message)) from None


def _redirected(request: Any, following: Any, endpoint: Endpoint) -> Any:
    """Return the request that a redirect asks for: the same, to the same server."""
    old, new = request.url, following.url
    same = (new.scheme, new.port) in ((old.scheme, old.port), ("https", None))
    same = same and new.host == old.host
    if same and following.method == request.method:
        return following
    fix = "Give the address of the server that answers."
    if same:  # 301 to 303, after which clients send GET
        fix = "It would be asked without the question. Give the address that takes questions."
    shown = safe(redacted(str(new)), LONGEST)
    message = f"{endpoint.url} redirects to {shown}, where nothing was sent. {fix}"
    raise _Final(UsageError("endpoint_redirects", message))


def _read(response: Any, endpoint: Endpoint, overdue: float) -> Any:
    """Return a response with its body, which is read to a bounded size for a bounded time."""
    body = bytearray()
    try:
        for chunk in response.iter_raw():
            body += chunk
            if clock() > overdue:
                raise _Final(_failed(f"no whole answer within {endpoint.limit:g} s"))
            if len(body) > LARGEST:
                break
    finally:
        response.close()
    headers = response.headers.copy()
    if headers.pop("content-encoding", "") in ("gzip", "deflate"):  # which was not asked for
        body = zlib.decompressobj(zlib.MAX_WBITS | 32).decompress(bytes(body), LARGEST + 1)
    if len(body) > LARGEST:
        raise _Final(_failed(f"a reply of more than {LARGEST >> 20} MiB"))
    return type(response)(
        response.status_code, headers=headers, content=bytes(body), request=response.request
    )


def _failed(error: str) -> Answer:
    return Answer("", finish="error", error=error)


def _said(error: Any) -> str:
    """Return what an error says, shortened, without the key, which a server may repeat."""
    body = getattr(error, "body", error)
    text = body.get("message") if isinstance(body, dict) else None
    found = text if isinstance(text, str) else str(error)
    return safe(redacted(" ".join(found.split())[: 64 * LONGEST]), LONGEST)


def _opening_unsupported() -> UsageError:
    return UsageError(
        "opening_unsupported",
        "An endpoint does not continue an answer that was begun. "
        "Leave out the attack 'prefill' or use a local model.",
    )


def endpoint(reference: str) -> Endpoint:
    """Return the endpoint that `api:MODEL@URL` names.

    Raises:
        UsageError: `wrong_endpoint`, `endpoint_credentials`.
    """
    found = re.fullmatch(r"api:(.+?)@(https?://\S+)", reference)
    shown = safe(redacted(reference), LONGEST)
    if not found or not reference.isprintable() or not _is_address(found[2]):
        raise UsageError(
            "wrong_endpoint",
            f"{shown!r} is not an endpoint. Give api:MODEL@URL, such as "
            "api:qwen2.5-7b@http://127.0.0.1:8000/v1.",
        )
    model, url = found.groups()
    if redacted(reference) != reference or urlsplit(url).query:
        raise UsageError(
            "endpoint_credentials",
            f"{shown!r} holds credentials or a query. Put the key into {KEY}.",
        )
    return Endpoint(url.rstrip("/"), model)


def _is_address(url: str) -> bool:
    try:
        parts = urlsplit(url)
        host = (parts.hostname or "").encode("idna")
        return bool(host) and parts.port != 0 and not parts.fragment
    except ValueError:  # a port or host that there cannot be
        return False


class OpenAIEngine(Engine):
    """Answers by a model behind an endpoint, eight requests at a time."""

    name = "openai"

    def supports(self, reference: Any, **asked) -> str | None:
        if not isinstance(reference, Endpoint):
            return "it is not behind an endpoint"
        reasons = (reason for name, reason in UNSUPPORTED.items() if asked.get(name))
        return next(reasons, None)

    def precision(self, training: Any = None) -> str:
        return "unknown, behind an endpoint"

    def render(
        self, model: Any, chat: list[Message], opening: str = "", opening_tokens: int | None = None
    ) -> tuple[str, str]:
        if opening:
            raise _opening_unsupported()
        return json.dumps(chat), ""

    def answer_all(self, model: Endpoint, collector: Collector) -> None:
        for numbers in collector.groups():
            self._ask(model, collector, numbers)

    def _ask(self, model: Endpoint, collector: Collector, numbers: list[int]) -> None:
        asked = [collector.requests[number] for number in numbers]
        if asked[0].choices:
            raise UsageError(
                "choices_unsupported",
                "An endpoint gives no likelihoods of choices. Use a local model.",
            )
        model.answers(
            [request.chat for request in asked],
            max_new_tokens=asked[0].max_new_tokens,
            decoding=asked[0].decoding,
            seeds=[request.seed for request in asked],
            each=lambda places, found: collector.add([numbers[k] for k in places], found),
        )


ENGINE = OpenAIEngine
