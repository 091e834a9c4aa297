"""A text classifier and its weights: texts of any length to the probability of each label."""

from __future__ import annotations

import math
from collections.abc import Sequence

from llm_distill.models import weights

_OVERLAP = 4  # parts of a long text share a quarter: what is cut in one is whole in the next


class Classifier:
    """The weights, loaded once. `labels`: place in the output -> name."""

    def __init__(self, reference: str, revision: str | None, max_tokens: int) -> None:
        self._tokenizer = weights.load_tokenizer(reference, None, revision)
        self._model = weights.load_classifier(reference, revision)
        config = self._model.config
        self.labels = {int(place): str(name) for place, name in config.id2label.items()}
        self._apart = config.problem_type == "multi_label_classification" or config.num_labels == 1
        known = (self._tokenizer.model_max_length, getattr(config, "max_position_embeddings", None))
        self._room = min(max_tokens, *(size for size in known if size is not None))

    def probabilities(self, texts: Sequence[str], batch_size: int) -> list[list[float]]:
        """One list (labels,) for each text: the highest of its parts, each label by itself; NaN for a text without tokens.

        Labels that exclude each other share one softmax; those of a multi-label classifier have a sigmoid each.
        """
        import torch

        parts = [(number, ids) for number, text in enumerate(texts) for ids in self._parts(text)]
        parts.sort(key=lambda part: len(part[1]))  # so that a batch has little padding
        highest = [[math.nan] * len(self.labels) for _ in texts]
        pad = self._tokenizer.pad_token_id or 0
        for start in range(0, len(parts), batch_size):
            batch = parts[start : start + batch_size]
            width = max(len(ids) for _, ids in batch)
            rows = [ids + [pad] * (width - len(ids)) for _, ids in batch]
            mask = [[1] * len(ids) + [0] * (width - len(ids)) for _, ids in batch]
            device = self._model.device
            with torch.no_grad():
                logits = self._model(
                    input_ids=torch.tensor(rows, device=device), attention_mask=torch.tensor(mask, device=device)
                ).logits  # (batch, labels)
            found = (logits.sigmoid() if self._apart else logits.softmax(-1)).tolist()
            for (number, _), row in zip(batch, found, strict=True):
                highest[number] = [
                    new if math.isnan(old) else max(old, new) for old, new in zip(highest[number], row, strict=True)
                ]
        return highest

    def _parts(self, text: str) -> list[list[int]]:
        """The token ids of a text, whole or in overlapping parts, each with the tokenizer's own marks around it."""
        marks = self._tokenizer.num_special_tokens_to_add(pair=False)
        if not text.strip() or self._room <= marks:
            return []
        found = self._tokenizer(
            text,
            truncation=True,
            max_length=self._room,
            stride=(self._room - marks) // _OVERLAP,
            return_overflowing_tokens=True,
            verbose=False,
        )
        return [list(ids) for ids in found.input_ids]
