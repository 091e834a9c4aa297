"""How many tokens a request's prompt has, never too few: what a budget reserves before the true count comes back.

Counted with the model's own vocabulary where there is one on this machine, else bounded: a byte-level or byte-fallback
tokenizer makes at most one token of each byte. A missing network is never waited for; `fetch` is the one that downloads.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Literal
from unicodedata import is_normalized, normalize

from llm_distill.errors import UserError
from llm_distill.records import Request

#: Tokens around each message: delimiters, a blank that some tokenizers put first. ChatML and Llama 3 take 5.
PER_MESSAGE = 8
#: Tokens a chat template adds once; more beside an exact count, which has no room of its own. The largest template known,
#: gpt-oss with a system message of its own, adds about 75.
PER_REQUEST, PER_COUNTED_REQUEST = 32, 128
#: Vocabularies of tiktoken: the file's name, and what stands in it (SHA-256).
_FILES = {
    "o200k_base": ("o200k_base", "446a9538cb6c348e3516120d7c08b09f57c36495e2acfffe59a5bf8b0cfb1a2d"),
    "o200k_harmony": ("o200k_base", "446a9538cb6c348e3516120d7c08b09f57c36495e2acfffe59a5bf8b0cfb1a2d"),
    "cl100k_base": ("cl100k_base", "223921b76ee99bde995b7ff738513eef100fb51d18c93597a113bcffe865b2a7"),
}
#: How some tokenizers rewrite a text before they cut it.
_FORMS: tuple[Literal["NFC", "NFKC"], ...] = ("NFC", "NFKC")
_HOME = "https://openaipublic.blob.core.windows.net/encodings"
#: `fetch` waits this long for a vocabulary of a few MB.
_FETCH_S = 60.0
_INSTALL = "pip install 'llm-distill[tokens]'"


class TokenCounter:
    """Counts a request's prompt tokens; `how` says by what. Nothing is loaded before the first count."""

    def __init__(self, model_name: str | None = None, tokenizer: str | None = None) -> None:
        own = Path(tokenizer).expanduser() / "tokenizer.json" if tokenizer else None
        self._model, self._tokenizer = model_name, own if own and own.is_file() else None
        self._tokens: Callable[[str], int] | None = None
        self._ready = False

    def __call__(self, request: Request) -> int:
        """Prompt tokens, an upper estimate. A schema counts by its bytes: who knows how a provider shows it to the model."""
        self._prepare()
        schema = len((request.sampling.schema or "").encode())
        if self._tokens is None:
            return PER_REQUEST + schema + sum(PER_MESSAGE + len(m.role) + _bytes(m.content) for m in request.messages)
        told = sum(PER_MESSAGE + self._tokens(m.role) + self._tokens(m.content) for m in request.messages)
        return PER_COUNTED_REQUEST + schema + told

    @property
    def how(self) -> str:
        """What the tokens are counted by, as `check` prints it."""
        if self._tokenizer:
            self._prepare()  # which says so when it is none
            return f"tokens counted by {self._tokenizer}"
        encoding, why_not = self._encoding()
        if why_not:
            return "tokens bounded by bytes" + (f": {why_not}" if self._model else "")
        return f"tokens counted by {encoding}"

    def fetch(self) -> None:
        """Download the vocabulary that is missing, if one is. Without a network the bytes go on being the bound."""
        encoding, why_not = self._encoding()
        if why_not and encoding in _FILES and find_spec("tiktoken") and (path := _cached(encoding)):
            _download(encoding, path)
            self._ready = False

    def _prepare(self) -> None:
        if not self._ready:
            self._tokens, self._ready = self._load(), True

    def _load(self) -> Callable[[str], int] | None:
        if self._tokenizer:
            return _own(self._tokenizer)
        encoding, why_not = self._encoding()
        if why_not:
            return None
        import tiktoken

        encode = tiktoken.get_encoding(
            encoding
        ).encode_ordinary  # what looks like a special token is text like any other
        return lambda text: len(encode(text))

    def _encoding(self) -> tuple[str, str]:
        """The name of tiktoken's encoding for the model, and why it cannot be used; empty where there is none or it can."""
        if find_spec("tiktoken") is None:
            return "", f"tiktoken is not installed ({_INSTALL})"
        from tiktoken.model import encoding_name_for_model

        try:
            encoding = encoding_name_for_model((self._model or "").removeprefix("openai/"))
        except KeyError:
            return "", "no vocabulary of this model is known; `tokenizer:` may name its tokenizer.json"
        if encoding not in _FILES:
            return encoding, f"{encoding} is not used here"
        path = _cached(encoding)
        if path is None or not path.is_file():
            return encoding, f"{encoding} is not on this machine; `llm-distill fetch` downloads it"
        if hashlib.sha256(path.read_bytes()).hexdigest() != _FILES[encoding][1]:
            return encoding, f"{path} is not {encoding}; remove it, then `llm-distill fetch`"
        return encoding, ""


def counter(model_name: str | None, tokenizer: str | None = None) -> TokenCounter:
    """The closest count there is for a model: by the tokenizer.json in a folder, tiktoken's encoding for its name, or bytes."""
    return TokenCounter(model_name, tokenizer)


def tokens_of(tokenizer: Path | None = None) -> Callable[[str], int]:
    """Counts a text's tokens by a tokenizer.json, or by the vocabulary of GPT-4o; UserError where that is not at hand."""
    if tokenizer is not None:
        return _own(tokenizer)
    usual = TokenCounter("gpt-4o")
    if (tokens := usual._load()) is None:
        raise UserError(f"{usual.how}; or name a model's tokenizer.json as `tokenizer`.")
    return tokens


#: For models that cost nothing: the bound alone.
BY_BYTES = TokenCounter()


def _bytes(text: str) -> int:
    """Bytes of a text, in the longest of the forms that some tokenizers give it before they cut it."""
    size = len(text.encode())
    if size == len(text):  # ASCII is the same in all of them
        return size
    return max([size, *(len(normalize(form, text).encode()) for form in _FORMS if not is_normalized(form, text))])


def _own(path: Path) -> Callable[[str], int]:
    """Tokens by a tokenizer.json."""
    if find_spec("tokenizers") is None:
        raise UserError(f"tokenizer: counting by {path} needs the package tokenizers: {_INSTALL}.")
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # noqa: BLE001  the package raises bare Exceptions
        why = " ".join(str(error).split())
        raise UserError(f"tokenizer: {path} is not a tokenizer of the package tokenizers: {why}.") from None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    special = [token.content for token in tokenizer.get_added_tokens_decoder().values() if token.special]
    first = {text[0] for text in special if text}

    def tokens(text: str) -> int:
        count = len(tokenizer.encode(text, add_special_tokens=False).ids)
        if first.isdisjoint(text):
            return count
        tokenizer.encode_special_tokens = True  # a server may read them as plain text, which takes more of them
        try:
            return max(count, len(tokenizer.encode(text, add_special_tokens=False).ids))
        finally:
            tokenizer.encode_special_tokens = False

    return tokens


def _cached(encoding: str) -> Path | None:
    """Where tiktoken looks for a vocabulary (`tiktoken.load.read_file_cached`); None when its cache is switched off."""
    folder = os.environ.get("TIKTOKEN_CACHE_DIR", os.environ.get("DATA_GYM_CACHE_DIR"))
    if folder == "":
        return None
    home = Path(folder) if folder else Path(tempfile.gettempdir()) / "data-gym-cache"
    return home / hashlib.sha1(_address(encoding).encode(), usedforsecurity=False).hexdigest()


def _address(encoding: str) -> str:
    return f"{_HOME}/{_FILES[encoding][0]}.tiktoken"


def _download(encoding: str, path: Path) -> None:
    import asyncio

    import aiohttp

    async def read() -> bytes:
        timeout = aiohttp.ClientTimeout(total=_FETCH_S, connect=10)
        async with (
            aiohttp.ClientSession(timeout=timeout, trust_env=True) as session,
            session.get(_address(encoding), raise_for_status=True) as response,
        ):
            return bytes(await response.read())

    try:
        content = asyncio.run(read())
    except (aiohttp.ClientError, OSError, TimeoutError):
        return
    if hashlib.sha256(content).hexdigest() == _FILES[encoding][1]:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f"{path.name}.{os.getpid()}")
        temporary.write_bytes(content)
        temporary.replace(path)
