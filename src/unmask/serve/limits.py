"""What a client may ask for, and how it is refused."""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass, fields
from typing import Any

from ..errors import ConfigError, TaskError
from ..tasks.joint import MOST_MASKS

# the name of the model that a request waits for while it is loaded: so that giving up can say what was waited for
LOADING: ContextVar[str | None] = ContextVar("LOADING", default=None)


@dataclass(frozen=True, slots=True)
class Limits:
    """What the service takes on; whatever goes beyond is refused, never cut.

    max_concurrent: requests that wait or run; the next one is told to come back (429).
    max_connections: open connections; the next one is closed.
    max_body_bytes: of a request.
    max_inputs: texts of a request.
    max_masks: masks of a text.
    max_searched: sequences that the model may be asked about, to fill masks jointly or blanks by words of several pieces.
    max_text_tokens: tokens of a text to be scored, each of which is a sequence for the model.
    max_characters: of a request's texts, where every token is answered: scoring, tokenizing.
    max_answer_characters: of the filled texts in an answer, all candidates together.
    request_seconds: from the request's last byte to its answer.
    client_seconds: for a client to send a request, or to take its answer.
    """

    max_concurrent: int = 64
    max_connections: int = 1000
    max_body_bytes: int = 2**20
    max_inputs: int = 128
    max_masks: int = MOST_MASKS
    max_searched: int = 4096
    max_text_tokens: int = 1024
    max_characters: int = 2**16
    max_answer_characters: int = 2**22
    request_seconds: float = 60.0
    client_seconds: float = 20.0

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not value > 0:
                raise ConfigError(f"{field.name} = {value}; allowed: more than 0")


class Refused(TaskError):
    """A request that is not answered: the status to send, what to say, and more about it (`detail`: what is wrong where)."""

    def __init__(self, status: int, message: str, *, detail: list[dict[str, Any]] | None = None, retry_after: int | None = None) -> None:
        super().__init__(message)
        self.status, self.detail = status, detail
        self.headers = {} if retry_after is None else {"Retry-After": str(retry_after)}

    def to_dict(self) -> dict[str, Any]:
        """Return the answer's body."""
        return {"error": str(self)} | ({} if self.detail is None else {"detail": self.detail})
