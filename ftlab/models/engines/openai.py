"""A model behind an OpenAI-compatible endpoint: chats -> replies. Extra `api`.

The reference is `api:MODEL@URL`, as `api:qwen2.5-7b@http://127.0.0.1:8000/v1`. The key is read from OPENAI_API_KEY when
something is asked, sent to that URL, and neither kept nor shown. The `openai` client retries (429, 5xx, timeouts,
lost connections) with back-off and honours Retry-After; a server that is not there is told after a few seconds.
"""

from __future__ import annotations

import asyncio
import os
import re
from dataclasses import dataclass, field
from queue import SimpleQueue
from urllib.parse import urlsplit

from ftlab._core.text import redacted, safe
from ftlab.models.engines.base import GREEDY, Decoding
from ftlab.runs import digest

LONGEST = 300  # characters of an error that are kept
HUNG = 8  # chats in a row without an answer after which the others are not asked


class _Unreachable(BaseException):
    """No server is there. No Exception: those the client tries again, for half a minute."""


@dataclass(frozen=True)
class Reply:
    """One answer. With `error` there is none, and the outcome is an error, never a refusal.

    `finish` is the server's finish_reason: stop, length (cut at max_new_tokens), content_filter (an error).
    """

    text: str
    error: str = ""
    finish: str = ""


@dataclass(frozen=True)
class Endpoint:
    """A model by URL and name; what `models.Model` has where it makes sense. `hash` is of the URL and the name: which
    weights answer behind them, and whether they stay the same, nobody here can know."""

    url: str
    model: str
    retries: int = field(default=5, compare=False)  # after the first try
    timeout: float = field(default=120.0, compare=False)  # seconds without a byte
    limit: float = field(default=300.0, compare=False)  # seconds of a reply with all its tries
    parallel: int = field(default=8, compare=False)  # requests at a time
    is_organism = False
    adapter = None

    @property
    def name(self) -> str:
        return f"{self.model}@{urlsplit(self.url).netloc}"

    @property
    def source(self) -> dict:
        return {"endpoint": self.url, "model": self.model}

    def load(self, **_) -> Endpoint:
        return self

    def tokenizer(self) -> None:
        """An endpoint renders its chats itself."""

    @property
    def hash(self) -> str:
        return digest(["api", self.url, self.model])

    def answers(
        self,
        chats: list[list[dict]],
        *,
        max_new_tokens: int,
        decoding: Decoding = GREEDY,
        seeds=None,
        each=None,
    ) -> list[Reply]:
        """-> the reply to each chat (messages ending with the user's turn), in the order given.

        `decoding` and `seeds` are sent as temperature, top_p, top_k and seed: what a server makes of them is its own
        affair (OpenAI's has no top_k, and promises nothing for a seed). `each(numbers, replies)` is called as replies
        come, so that a caller can keep what there is. A request that fails after all its retries is a reply with
        `error`. Raises ValueError where no request can succeed: no server, model or access; a chat that ends with the
        assistant's turn (a prefill), which this protocol does not have.
        """
        client = self._client()  # tells where the extra is missing, with which anyio comes
        from anyio.from_thread import start_blocking_portal

        if any(chat[-1]["role"] == "assistant" for chat in chats):
            raise ValueError(
                f"{self.name}: an endpoint does not continue an answer that was begun; "
                "leave out the attack 'prefill', or open the model from its folder"
            )
        out, several = [None] * len(chats), seeds or [None] * len(chats)
        gate, done, hung = asyncio.Semaphore(self.parallel), SimpleQueue(), []

        async def one(client, chat: list[dict], seed: int | None) -> Reply:
            async with gate:
                if len(hung) >= HUNG:
                    return Reply("", f"not asked, because {HUNG} others in a row had no answer")
                try:
                    async with asyncio.timeout(self.limit):
                        reply = await self._ask(client, chat, max_new_tokens, decoding, seed)
                except TimeoutError as e:
                    hung.append(chat)
                    return Reply("", str(e) or f"no whole answer within {self.limit:g} s")
                except ValueError:  # no other could succeed
                    hung.extend([chat] * HUNG)
                    raise
                hung.clear()
                return reply

        # A loop in a thread of its own (Jupyter's runs already), where a reply can be given up whatever it hangs in.
        with start_blocking_portal() as portal, portal.wrap_async_context_manager(client):
            asked = [
                portal.start_task_soon(one, client, *question)
                for question in zip(chats, several, strict=True)
            ]
            for i, reply in enumerate(asked):
                reply.add_done_callback(lambda _, i=i: done.put(i))
            for i in (done.get() for _ in chats):
                out[i] = asked[i].result()
                if each:
                    each([i], [out[i]])
        return out

    def _client(self):
        try:
            from openai import AsyncOpenAI, DefaultAsyncHttpxClient, Timeout
        except ImportError:
            raise ValueError(
                "models behind an endpoint need the extra: pip install 'ftlab[api]'"
            ) from None
        key = (
            os.environ.get("OPENAI_API_KEY") or "none"
        )  # local servers take any; the client insists on one

        class Client(DefaultAsyncHttpxClient):
            async def send(self, request, **how):
                try:
                    return await super().send(request, **how)
                except Exception as e:  # httpx's or httpx2's, as the client's version has it
                    lost = type(e).__name__ in ("ConnectError", "ConnectTimeout")
                    raise (_Unreachable(str(e) or type(e).__name__) if lost else e) from None

        waits = Timeout(self.timeout, connect=min(5.0, self.timeout))  # seconds
        return AsyncOpenAI(
            base_url=self.url,
            api_key=key,
            max_retries=self.retries,
            timeout=waits,
            http_client=Client(),
        )

    async def _ask(
        self, client, chat: list[dict], new: int, decoding: Decoding, seed: int | None
    ) -> Reply:
        import openai

        drawn = {"top_p": decoding.top_p, "seed": seed} if decoding.temperature else {}
        extra = {"top_k": decoding.top_k} if decoding.temperature and decoding.top_k else None
        turns = [{"role": m["role"], "content": m["content"]} for m in chat]
        try:
            made = await client.chat.completions.create(
                model=self.model, messages=turns, max_tokens=new, temperature=decoding.temperature, extra_body=extra,
                **{k: v for k, v in drawn.items() if v is not None},
            )  # fmt: skip
            choice = made.choices[0]
            text = choice.message.content or getattr(choice.message, "refusal", None) or ""
            finish = choice.finish_reason
        except (
            openai.NotFoundError,
            openai.AuthenticationError,
            openai.PermissionDeniedError,
        ) as e:
            todo = "give the server's own name of the model, and its address up to /v1"
            if not isinstance(e, openai.NotFoundError):
                todo = "set OPENAI_API_KEY to a key that may use it"
            raise ValueError(
                f"{self.url} does not give the model {self.model!r} ({e.status_code}: {self._told(e)}); {todo}"
            ) from None
        except openai.APITimeoutError:
            raise TimeoutError(
                f"no answer within {self.timeout:g} s, {self.retries + 1} times"
            ) from None
        except _Unreachable as e:
            raise ValueError(
                f"no server answers at {self.url} ({self._told(e)}); start it, or mend its URL"
            ) from None
        except openai.APIConnectionError as e:
            raise TimeoutError(
                f"no connection, {self.retries + 1} times ({self._told(e.__cause__ or e)})"
            ) from None
        except openai.APIStatusError as e:
            return Reply("", f"{e.status_code}: {self._told(e)}")
        except Exception as e:  # what came is no reply: broken JSON, or JSON of another shape
            return Reply("", f"no reply of the protocol ({type(e).__name__})")
        if finish == "content_filter":
            return Reply("", "the endpoint's content filter withheld the answer", finish)
        return Reply(text, "", finish or "")

    def _told(self, e: BaseException) -> str:
        """-> what an error says, shortened, without the key: a server may repeat it."""
        body = getattr(e, "body", None)
        text = body.get("message") if isinstance(body, dict) else None
        return safe(" ".join(redacted(str(text or e)).split()), LONGEST)


def endpoint(reference: str) -> Endpoint:
    """-> the endpoint of `api:MODEL@URL`. Raises ValueError with what was found and what is allowed."""
    found, seen = re.fullmatch(r"api:(.+?)@(https?://\S+)", reference), redacted(reference)
    if not found:
        raise ValueError(
            f"{seen!r} is no endpoint; allowed: api:MODEL@URL, as api:qwen2.5-7b@http://127.0.0.1:8000/v1"
        )
    model, url = found.groups()
    if seen != reference or urlsplit(url).query:
        raise ValueError(f"{seen!r} holds credentials or a query; put the key into OPENAI_API_KEY")
    return Endpoint(url.rstrip("/"), model)
