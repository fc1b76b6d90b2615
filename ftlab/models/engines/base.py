"""What an engine is asked and how it decodes."""

from __future__ import annotations

from pydantic import Field

from ftlab._core.config import Config


class Decoding(Config):
    """How an answer's tokens are drawn; the default is greedy. Order: temperature, then top-k, then top-p (nucleus)."""

    temperature: float = Field(0.0, ge=0)  # 0: greedy, the most probable token each time
    top_p: float = Field(1.0, gt=0, le=1)  # 1: off
    top_k: int = Field(0, ge=0)  # 0: off


GREEDY = Decoding()
