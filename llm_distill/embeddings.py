"""Texts as unit vectors, whose dot product is the cosine similarity of what they say.

`wordllama` needs no network and no torch: its wheel ships static vectors of 32,000 word pieces. A text is the mean of its
pieces', so the order of words is lost; `not bad, good` is `not good, bad`. An encoder, by folder or hub id, reads the text
whole and takes a hundred times as long on a CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import AfterValidator

from llm_distill.errors import UserError
from llm_distill.models import weights
from llm_distill.plugs import Weights

if TYPE_CHECKING:
    import numpy as np

STATIC = "wordllama"
#: Characters of a text that are read: a mean over so many words no longer moves, and a document would fill the memory.
_LONGEST = 20_000
#: Texts at once, and word pieces at once: 16 MB of vectors.
_TEXTS, _PIECES = 512, 1 << 14
#: Texts an encoder's batch has, and pieces a text may have, fewer where the encoder has no more places.
_BATCH, _PLACES = 64, 512
_ROWS, _OTHERS = 512, 8192


def installed(name: str) -> str:
    """The same name; ValueError where what it needs is not installed, or a folder is no model's."""
    if name == STATIC and find_spec("wordllama") is None:
        raise ValueError("the package wordllama is not installed: pip install 'llm-distill[filter]'")
    if name != STATIC:
        weights.loadable(name)
    if (folder := Path(name)).is_dir() and not (folder / "config.json").is_file():
        raise ValueError(f"{folder} holds no config.json; name a folder that save_pretrained wrote")
    return name


#: What turns texts into vectors: `wordllama`, an encoder's folder (relative to the recipe's), or its hub id.
Embedder = Annotated[Weights, AfterValidator(installed)]


@lru_cache(maxsize=2)
def embedder(name: str = STATIC) -> Callable[[Sequence[str]], np.ndarray]:
    """A function from n texts to (n, d) float32, each row of length 1, or 0 for a text without words. Loads at the first use.

    Encoders are read by the mean over their last hidden states, as those trained for similarity mostly are (Reimers and
    Gurevych 2019); weights as safetensors only, and no code that comes with them is run.
    """
    try:
        installed(name)
    except ValueError as error:
        raise UserError(f"embedder: {error}.") from None
    return _static() if name == STATIC else _encoder(name)


def _static() -> Callable[[Sequence[str]], np.ndarray]:
    """The wheel's files, read without its code: that sets up everybody's logging when it is imported, and looks for its
    tokenizer in another folder than it ships it in.
    """
    import numpy as np
    from safetensors.numpy import load_file
    from tokenizers import Tokenizer

    spec = find_spec("wordllama")
    assert spec
    assert spec.submodule_search_locations
    home = Path(spec.submodule_search_locations[0])
    try:
        table = load_file(home / "weights" / "l2_supercat_256.safetensors")["embedding.weight"].astype(np.float32)
        tokenizer = Tokenizer.from_file(str(home / "tokenizers" / "l2_supercat_tokenizer_config.json"))
    except Exception as error:  # noqa: BLE001  the package tokenizers raises bare Exceptions
        raise UserError(f"embedder: {home} does not hold what wordllama 0.4 ships there: {error}.") from None
    tokenizer.no_truncation()
    tokenizer.no_padding()

    def embed(texts: Sequence[str]) -> np.ndarray:
        found = np.zeros((len(texts), table.shape[1]), dtype=np.float32)
        for places, ids in _pieces(tokenizer, texts):
            starts = np.cumsum([0, *(len(one) for one in ids[:-1])])
            flat = np.fromiter((number for one in ids for number in one), dtype=np.int64)
            found[places] = np.add.reduceat(table[np.minimum(flat, len(table) - 1)], starts, axis=0)
        return _unit(found)

    return embed


def _pieces(tokenizer: Any, texts: Sequence[str]) -> Iterator[tuple[list[int], list[list[int]]]]:
    """Places of texts that have word pieces, and those, some at a time."""
    places: list[int] = []
    ids: list[list[int]] = []
    size = 0
    for first in range(0, len(texts), _TEXTS):
        some = [_readable(text).strip() for text in texts[first : first + _TEXTS]]
        for place, one in enumerate(tokenizer.encode_batch_fast(some, add_special_tokens=False), first):
            if not one.ids:
                continue
            if places and size + len(one.ids) > _PIECES:
                yield places, ids
                places, ids, size = [], [], 0
            places.append(place)
            ids.append(one.ids)
            size += len(one.ids)
    if places:
        yield places, ids


def _encoder(reference: str) -> Callable[[Sequence[str]], np.ndarray]:
    import numpy as np
    import torch

    tokenizer, model = weights.load_tokenizer(reference), weights.load_encoder(reference)
    most = min(_PLACES, tokenizer.model_max_length, getattr(model.config, "max_position_embeddings", _PLACES))
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token

    def embed(texts: Sequence[str]) -> np.ndarray:
        found = np.zeros((len(texts), model.config.hidden_size), dtype=np.float32)
        order = sorted((i for i, text in enumerate(texts) if text.strip()), key=lambda i: len(texts[i]))
        for first in range(0, len(order), _BATCH):
            places = order[first : first + _BATCH]
            read = tokenizer(
                [_readable(texts[i]) for i in places],
                padding=True,
                truncation=True,
                max_length=most,
                return_tensors="pt",
            ).to(model.device)
            with torch.inference_mode():
                states = model(**read).last_hidden_state
            mask = read["attention_mask"].unsqueeze(-1).to(states.dtype)
            found[places] = ((states * mask).sum(1) / mask.sum(1).clamp(min=1)).float().cpu().numpy()
        return _unit(found)

    return embed


def nearest(vectors: np.ndarray, others: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each of (n, d) unit vectors the cosine with the nearest of (m, d) others, and that one's place; -1 and -1 for m = 0.

    Of equally near ones the first. Some of both at a time: 512 x 8192 cosines are 16 MB.
    """
    import numpy as np

    best, places = np.full(len(vectors), -1, dtype=np.float32), np.full(len(vectors), -1, dtype=np.int64)
    for start in range(0, len(vectors), _ROWS):
        rows = slice(start, start + _ROWS)
        for first in range(0, len(others), _OTHERS):
            cosines = vectors[rows] @ others[first : first + _OTHERS].T
            place = cosines.argmax(axis=1)
            score = cosines[np.arange(len(place)), place]
            nearer = score > best[rows]
            best[rows][nearer], places[rows][nearer] = score[nearer], place[nearer] + first
    return best, places


def _readable(text: str) -> str:
    """What a tokenizer takes: half a surrogate pair is no character."""
    return text[:_LONGEST].encode("utf-8", "replace").decode("utf-8")


def _unit(vectors: np.ndarray) -> np.ndarray:
    """(n, d) with rows of length 1; rows of zeros stay."""
    import numpy as np

    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    np.divide(vectors, length, out=vectors, where=length > 0)
    return vectors
