"""What goes wrong in the middle of training through no fault of the program, told in one message that says what to change."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from llm_distill.errors import NO_ROOM, DiskFull, UserError
from llm_distill.trainers.batch_check import preview
from llm_distill.trainers.checkpoints import newest_whole
from llm_distill.trainers.packing import Unit
from llm_distill.trainers.rows import Row

#: How libraries say that memory ran out, beside torch's and Python's own errors for it.
_MEMORY = ("out of memory", "can't allocate memory", "not enough memory", "cannot allocate memory", "alloc_failed")
#: The same of a disk. torch.save says only that a write failed.
_DISK = (
    "no space left",
    "os error 28",
    "disk quota",
    "os error 122",
    "pytorchstreamwriter failed writing",
    "file write failed",
)
_OF_LIBRARIES = (RuntimeError, OSError)
_SHOWN_ROWS, _SHOWN_CHARACTERS, _NAMED_ROWS = 5, 200, 20


@contextmanager
def explained() -> Iterator[None]:
    """Turn memory and disk that run out within the block into a UserError that says what to lower, or what to clear."""
    try:
        yield
    except Exception as error:  # safetensors' is of no other kind
        # Loading weights tells what went wrong in a line of its own, and memory may run out there already.
        raised = error.__cause__ if isinstance(error, UserError) and error.__cause__ else error
        if isinstance(raised, MemoryError) or (isinstance(raised, _OF_LIBRARIES) and _says(raised, _MEMORY)):
            raise UserError(_memory(raised)) from error
        if getattr(error, "errno", None) in NO_ROOM or _says(error, _DISK):
            raise DiskFull(_disk(error)) from error
        raise


def _says(error: BaseException, phrases: Sequence[str]) -> bool:
    text = str(error).casefold()
    return any(phrase in text for phrase in phrases)


def _memory(error: BaseException) -> str:
    said = next(iter(str(error).strip().splitlines()), "")[:200]
    return (
        f"train: out of memory{f' ({said})' if said else ''}. Lower `batch_size` (with `gradient_accumulation` as many times "
        "higher, steps stay as they are), set `activation_checkpointing: true` (a fifth slower), or lower `max_length` together "
        "with what the student is shown. A model that does not fit by itself needs `lora_rank`, and on CUDA `load_in: 4bit`."
    )


def _disk(error: Exception) -> str:
    name = getattr(error, "filename", None)
    return (
        f"train: the disk is full{f' ({name})' if name else ''}. The last whole checkpoint is kept: make room, and the same "
        "command goes on from it."
    )


def not_finite(
    what: str, value: float, step: int, shown: str = "", kept: str = "", rate: str = "learning_rate"
) -> UserError:
    """A loss, or what comes of it, that is no number: what was read then, and what is kept. rate: the knob to lower."""
    return UserError(
        f"train: the {what} became {value} at step {step}. Lower {rate}, or set dtype: float32 if it is not."
        + (f" {kept}" if kept else "")
        + (f"\nIt was reading:\n{shown}" if shown else "")
    )


def teller(units: Sequence[Unit], order: Sequence[int], tokenizer: Any) -> Callable[[int, int], str]:
    """Gives what is read between two places of a reading order, as `listed`."""

    def tell(start: int, stop: int) -> str:
        read = [row for place in order[start:stop] for row in units[place].rows if row.trained_tokens]
        return listed(read, tokenizer)

    return tell


def listed(rows: Sequence[Row], tokenizer: Any) -> str:
    """Each row by id, with its end, which is learnt."""
    lines = []
    for row in rows[:_SHOWN_ROWS]:
        text = preview(row, tokenizer)
        end = text if len(text) <= _SHOWN_CHARACTERS else f"…{text[-_SHOWN_CHARACTERS:]}"
        lines.append(f"  row {row.row_id}: {end}")
    if rest := [row.row_id for row in rows[_SHOWN_ROWS:]]:
        lines.append(f"  and {len(rest):,} more: {', '.join(rest[:_NAMED_ROWS])}{', …' if rest[_NAMED_ROWS:] else ''}")
    return "\n".join(lines)


def kept(checkpoints: Path) -> str:
    """Which checkpoint there is to go back to."""
    last = newest_whole(checkpoints)
    return f"The checkpoint before it is kept: {last}." if last else "No checkpoint was due before it."
