"""Models behind an OpenAI-compatible endpoint (extra `api`).

A reference is `api:MODEL@URL`, such as `api:qwen2.5-7b@http://127.0.0.1:8000/v1`. The key is read
from OPENAI_API_KEY when something is asked, sent to that URL, and neither kept nor shown. The
`openai` client retries (429, 5xx, timeouts, lost connections) with back-off and honours
Retry-After; an unreachable server is reported within seconds.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from ftlab._core.errors import UsageError
from ftlab._core.files import digest
from ftlab._core.progress import clock
from ftlab._core.text import redacted, safe
from ftlab._core.types import Answer, Message
from ftlab.models.engines.base import GREEDY, Collector, Decoding, Engine, OnAnswer

LONGEST = 300  # characters of an error that are kept
HUNG = 8  # requests in a row without an answer after which no others are sent
NOT_ASKED = f"not asked, because {HUNG} others in a row had no answer"
POLL_S = 1.0  # between two looks at what is overdue
KEY = "OPENAI_API_KEY"
UNSUPPORTED = {
    "choices": "an endpoint gives no likelihoods of choices",
    "openings": "an endpoint does not continue an answer that was begun",
    "screened": "an endpoint does not end an answer at a refusal",
}


class _Unreachable(BaseException):
    """No server is there. Not an Exception: those the client would retry for half a minute."""


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
                `endpoint_unreachable`, `endpoint_denied`, `endpoint_model_unknown`. A request
                that fails alone is an answer with `error`.
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
        except (openai.APIStatusError, _Unreachable) as error:
            answer = self._refused(error)
        except Exception as error:  # broken JSON, or JSON of another shape
            answer = _failed(f"not a reply of the protocol ({type(error).__name__})")
        self.hung = 0
        return answer

    def _send(self, chat: list[Message], seed: int | None) -> Answer:
        messages = [{"role": m["role"], "content": m["content"]} for m in chat]
        settings = self.settings if seed is None else self.settings | {"seed": seed}
        reply = self.client.chat.completions.create(
            model=self.endpoint.model, messages=messages, **settings
        )
        choice = reply.choices[0]
        if choice.finish_reason == "content_filter":
            return _failed("the endpoint's content filter withheld the answer")
        text = choice.message.content or getattr(choice.message, "refusal", None) or ""
        tokens = reply.usage.completion_tokens if reply.usage else 0
        finish = "length" if choice.finish_reason == "length" else "stop"
        return Answer(text, finish=finish, tokens=tokens)

    def _refused(self, error: BaseException) -> Answer:
        """Return what one request met; raise UsageError where every other would meet it too."""
        url, model = self.endpoint.url, self.endpoint.model
        status = getattr(error, "status_code", None)
        said = _said(error)
        if isinstance(error, _Unreachable):
            message = f"No server answers at {url} ({said}). Start it or correct the address."
            raise UsageError("endpoint_unreachable", message) from None
        if status in (401, 403):
            message = f"{url} denies access to {model!r} ({status}: {said}). Set {KEY} to a key."
            raise UsageError("endpoint_denied", message) from None
        if status == 404:
            message = f"{url} does not know the model {model!r} ({said}). Give the server's name."
            raise UsageError("endpoint_model_unknown", message) from None
        return _failed(f"{status}: {said}")


def _client(endpoint: Endpoint) -> Any:
    try:
        from openai import DefaultHttpxClient, OpenAI, Timeout
    except ImportError:
        raise UsageError(
            "api_not_installed", "Models behind an endpoint need: pip install 'ftlab[api]'."
        ) from None

    class Client(DefaultHttpxClient):
        def send(self, request: Any, **how) -> Any:
            try:
                return super().send(request, **how)
            except Exception as error:
                if type(error).__name__ in ("ConnectError", "ConnectTimeout"):
                    raise _Unreachable(str(error) or type(error).__name__) from None
                raise

    return OpenAI(
        base_url=endpoint.url,
        api_key=os.environ.get(KEY) or "none",  # local servers take any; the client wants one
        max_retries=endpoint.retries,
        timeout=Timeout(endpoint.timeout, connect=min(5.0, endpoint.timeout)),
        http_client=Client(),
    )


def _failed(error: str) -> Answer:
    return Answer("", finish="error", error=error)


def _said(error: BaseException) -> str:
    """Return what an error says, shortened, without the key, which a server may repeat."""
    body = getattr(error, "body", None)
    text = body.get("message") if isinstance(body, dict) else None
    return safe(" ".join(redacted(str(text or error)).split()), LONGEST)


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
    shown = redacted(reference)
    if not found:
        raise UsageError(
            "wrong_endpoint",
            f"{shown!r} is not an endpoint. Give api:MODEL@URL, such as "
            "api:qwen2.5-7b@http://127.0.0.1:8000/v1.",
        )
    model, url = found.groups()
    if shown != reference or urlsplit(url).query:
        raise UsageError(
            "endpoint_credentials",
            f"{shown!r} holds credentials or a query. Put the key into {KEY}.",
        )
    return Endpoint(url.rstrip("/"), model)


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
