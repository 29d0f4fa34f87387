"""Define the settings of the search service: limits, batches, keys and logs."""

from __future__ import annotations

from dataclasses import dataclass

from product_data.errors import OptionError


@dataclass(frozen=True, slots=True)
class ServiceSettings:
    """Settings of `retrieval.serve.app.create_app`.

    Args:
        api_key (`str` or `None`): key that a client sends to change products (`Authorization: Bearer KEY`). Default `None`:
            no client can change products.
        origins: origins of web pages that may call the service from a browser (CORS). Default: none.
        picture_hosts: hosts whose pictures the service fetches for its page, where the store names URLs. Default: none.
        max_body_bytes (`int`): size of a request. Default 8 MiB.
        max_pixels (`int`): width × height of a picture. Default 50 million.
        max_text (`int`): length of the words, in characters. Default 2,000.
        max_k (`int`): largest offset + k of a search. Default 1,000.
        max_requests (`int`): requests in work at once; another one is answered with 429. Default 64.
        seconds (`float`): time limit of a request, once its body is here. Default 30.
        body_seconds (`float`): time limit for the body of a request to arrive; a later one is answered with 408. Default 15.
        recent_queries (`int`): vectors of words that are kept, see `retrieval.serve.recent`. Default 4,096.
        batch_size (`int`): queries that the model encodes together. Default 32.
        batch_milliseconds (`float`): time that a query waits for others to share its batch. Default 4.
        log_queries (`bool`): whether logs contain the words of queries. Default False.

    Raises:
        OptionError: a limit that is not positive, a negative time, or an empty key.
    """

    api_key: str | None = None
    origins: tuple[str, ...] = ()
    picture_hosts: tuple[str, ...] = ()
    max_body_bytes: int = 8 * 2**20
    max_pixels: int = 50_000_000
    max_text: int = 2_000
    max_k: int = 1_000
    max_requests: int = 64
    seconds: float = 30.0
    body_seconds: float = 15.0
    recent_queries: int = 4_096
    batch_size: int = 32
    batch_milliseconds: float = 4.0
    log_queries: bool = False

    @property
    def pixels_in_work(self) -> int:
        """Pixels of the decoded pictures of all requests together, and of one request: four pictures of the largest size."""
        return 4 * self.max_pixels

    def __post_init__(self) -> None:
        for name in ("max_body_bytes", "max_pixels", "max_text", "max_k", "max_requests", "batch_size"):
            if getattr(self, name) < 1:
                raise OptionError(f"{name}={getattr(self, name)}; expected 1 or more")
        for name in ("seconds", "body_seconds"):
            if not getattr(self, name) > 0:
                raise OptionError(f"{name}={getattr(self, name)}; expected a time above 0")
        if self.recent_queries < 0:
            raise OptionError(f"recent_queries={self.recent_queries}; expected 0 or more")
        if not 0 <= self.batch_milliseconds < 1000 * self.seconds:
            raise OptionError(
                f"batch_milliseconds={self.batch_milliseconds}; expected 0 or more, and less than seconds"
            )
        if self.api_key is not None and len(self.api_key) < 16:
            raise OptionError(f"api_key: found {len(self.api_key)} characters; expected a secret of 16 or more")
