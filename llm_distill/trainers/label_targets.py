"""What a teacher's distribution over labels says of each token of a label: the soft targets of Hinton et al. (2015,
arXiv 1503.02531), at the tokens that tell labels apart.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from llm_distill.trainers.targets import Targets, table


def by_labels(label_ids: Sequence[Sequence[int]], probabilities: Sequence[float], trained: int) -> Targets:
    """Targets along the tokens of the label at place `trained`, from the probability of each label.

    label_ids: by label, its tokens as a row of it would be trained on, the end token last; probabilities: (labels,), what is
    missing to 1 went to answers that are no label. At each position every label that begins as the trained one has so far
    gives its mass to its next token, the end token among them, which parts a label from one that it begins. From the second
    position on these masses are divided by their sum, so that along each label they multiply to its probability; the missing
    mass is the first position's tail alone, for an answer that began as a label is taken for one. Where no label that the
    teacher finds possible begins so far as the trained one, nothing is known.

    In float16, as the logprobs were stored that the probabilities come from: a smaller tail than that can tell is none.
    """
    path, n = list(label_ids[trained]), len(label_ids[trained])
    position, ids, mass = list[int](), list[int](), list[float]()
    defined = np.zeros(n, bool)
    for place in range(n):
        fitting = [
            (own[place], probability)
            for own, probability in zip(label_ids, probabilities, strict=True)
            if len(own) > place and list(own[:place]) == path[:place] and probability > 0
        ]
        defined[place] = bool(fitting)
        whole = sum(probability for _, probability in fitting) if place else 1.0
        for token, probability in fitting:
            position.append(place)
            ids.append(token)
            mass.append(probability / whole)
    return table(np.array(position, np.int64), np.array(ids, np.int64), np.array(mass), defined, np.float16)
