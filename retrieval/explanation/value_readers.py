r"""Read from a product's vector which attribute values it contains, with readers fitted to the catalogue's own products.

Let x̃ be the centred vectors of products, and y their stated values (1 or 0, one column for each value p). For each key:

    m_p = Σ_{x states p} x̃ / (n_p + 20)                                         mean of a value, smaller for a rare one
    P(p | x) ∝ π_p exp(x̃ᵀ S⁻¹ m_p - ½ m_pᵀ S⁻¹ m_p),   S = C - Σ_p π_p m_p m_pᵀ + ν tr(C)/D · I

with C the covariance of x̃ and π_p the share of products that state p; "states no value of the key" is one more class. This is
linear discriminant analysis (Fisher, 1936; Hastie et al., "The Elements of Statistical Learning", §4.3) with a ridge ν, which
is chosen on a fifth of the products that the readers do not see. What a value adds to a vector while all others stay the same
are the rows of

    E = argmin ‖X̃ - Y E‖² + 20 ‖E‖²

Concept vectors that are means over a catalogue's own examples are those of TCAV (arXiv 1711.11279); that readers and effects
are two different matrices is shown by Haufe et al., NeuroImage 87, 2014. Products can be left out exactly, without a new fit.

Shape suffixes: N products, P values, K keys, D embedding, M vectors, S products left out, V values of one key.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TypeVar

import numpy as np
import scipy.linalg
import scipy.sparse
from scipy.sparse.linalg import cg
from tqdm import tqdm

SHRINKAGE = 20.0
"""Number of products without effect that the mean and the effect of each value count beside those that state it."""
NOISES = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""Values of ν that the fit chooses from."""
QUERY_NOISE = 1.0
"""Least ν for vectors that are not a product's, such as a photo's: their small components follow another distribution."""
_HELD_OUT = 0.2


_Value = TypeVar("_Value", bound=Hashable)


@dataclass(frozen=True)
class Sums:
    """What the readers of one set of products are made from; sums over more or fewer products are sums and differences.

    Args:
        count (`int`): N.
        total_D: Σ x̃; 0 for all products of a fit.
        square_DD: Σ x̃ x̃ᵀ.
        value_PD, value_P: Σ x̃ over the products that state a value, and their number.
        key_KD, key_K: the same over the products that state some value of a key.
    """

    count: int
    total_D: np.ndarray
    square_DD: np.ndarray
    value_PD: np.ndarray
    value_P: np.ndarray
    key_KD: np.ndarray
    key_K: np.ndarray

    @classmethod
    def of(cls, centred_ND: np.ndarray, value_NP: scipy.sparse.csr_array, key_P: np.ndarray, keys: int) -> Sums:
        """Return the sums of N products.

        Args:
            centred_ND: x̃.
            value_NP: (N, P) stated values, 1 or 0.
            key_P: (P,) number of each value's key.
            keys (`int`): K.
        """
        of_key_PK = scipy.sparse.csr_array((np.ones(len(key_P)), (np.arange(len(key_P)), key_P)), (len(key_P), keys))
        has_NK = ((value_NP @ of_key_PK) > 0).astype(np.float64)
        return cls(
            len(centred_ND),
            centred_ND.sum(axis=0),
            centred_ND.T @ centred_ND,
            value_NP.T @ centred_ND,
            np.asarray(value_NP.sum(axis=0)).ravel(),
            has_NK.T @ centred_ND,
            np.asarray(has_NK.sum(axis=0)).ravel(),
        )

    def __sub__(self, other: Sums) -> Sums:
        return Sums(*(getattr(self, name) - getattr(other, name) for name in self.__dataclass_fields__))


@dataclass(frozen=True)
class ValueReaders:
    """Readers of the values of a catalogue in the vectors of its products of one form.

    Args:
        key_P: (P,) number of each value's key.
        mean_D: (D,) mean of the products' vectors.
        sums: of the N products of the fit.
        effect_PD: E of the head of this file.
        value_NP: (N, P) stated values of the products.
        noise (`float`): ν.
        right_K, frequent_K: (K,) share of the held-out products whose value of a key is read right, and the share that
            "the most frequent value" is right for; NaN for a key that no held-out product states.
    """

    key_P: np.ndarray
    mean_D: np.ndarray
    sums: Sums
    effect_PD: np.ndarray
    value_NP: scipy.sparse.csr_array
    noise: float
    right_K: np.ndarray
    frequent_K: np.ndarray

    @classmethod
    def fit(
        cls, vector_ND: np.ndarray, value_NP: scipy.sparse.csr_array, key_P: np.ndarray, *, progress: bool = True
    ) -> ValueReaders:
        """Fit the readers of a catalogue.

        ν is the one of `NOISES` with which most values of the last fifth of the products are read right by readers of the
        other four fifths. Variants of a product usually have neighbouring ids, so that few of them are on both sides.

        Args:
            vector_ND: vectors of the products, in the order of their ids.
            value_NP: (N, P) stated values, 1 or 0.
            key_P: (P,) number of each value's key, from 0.
            progress (`bool`): whether to show a progress bar. Default True.
        """
        mean_D = vector_ND.mean(axis=0, dtype=np.float64)
        centred_ND = vector_ND.astype(np.float64) - mean_D
        keys = int(key_P.max()) + 1
        sums = Sums.of(centred_ND, value_NP, key_P, keys)
        gram_PP = (value_NP.T @ value_NP).toarray()
        gram_PP[np.diag_indices_from(gram_PP)] += SHRINKAGE
        effect_PD = scipy.linalg.solve(gram_PP, sums.value_PD, assume_a="pos")
        made = cls(key_P, mean_D, sums, effect_PD, value_NP, NOISES[0], np.full(keys, np.nan), np.full(keys, np.nan))
        held = np.arange(len(centred_ND)) >= round((1 - _HELD_OUT) * len(centred_ND))
        if not held.any() or held.all():
            return replace(made, noise=NOISES[-1])
        rest = replace(made, sums=sums - Sums.of(centred_ND[held], value_NP[held], key_P, keys))
        found = []
        for noise in tqdm(NOISES, desc="readers of values", delay=3.0, leave=False, disable=not progress):
            found.append((noise, *rest.accuracy(centred_ND[held], value_NP[held], noise)))
        best = max(found, key=lambda entry: (np.nanmean(entry[1]) if np.isfinite(entry[1]).any() else 0.0, entry[0]))
        return replace(made, noise=best[0], right_K=best[1], frequent_K=best[2])

    def accuracy(
        self, centred_MD: np.ndarray, value_MP: scipy.sparse.csr_array, noise: float
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return for each key the share of vectors whose most probable value is stated, and that of the most frequent value.

        Args:
            centred_MD: vectors of products that the readers were not fitted to.
            value_MP: (M, P) their stated values.
            noise (`float`): ν.

        Shapes: returns two (K,) float64; NaN for a key that none of them states.
        """
        keys = len(self.right_K)
        right_K, frequent_K = np.full(keys, np.nan), np.full(keys, np.nan)
        for key, columns, probability_MV in self._probabilities(centred_MD, range(keys), self.sums, noise):
            own_MV = value_MP[:, columns].toarray()
            has_M = own_MV.sum(axis=1) > 0
            if has_M.any():
                best_M = probability_MV[has_M].argmax(axis=1)
                right_K[key] = own_MV[has_M][np.arange(int(has_M.sum())), best_M].mean()
                frequent_K[key] = own_MV[has_M][:, self.sums.value_P[columns].argmax()].mean()
        return right_K, frequent_K

    def read(
        self,
        centred_MD: np.ndarray,
        *,
        keys: Sequence[int] | None = None,
        without: Sequence[int] = (),
        known_SD: np.ndarray | None = None,
        least_noise: float = 0.0,
    ) -> np.ndarray:
        """Return the probabilities of values given vectors.

        Args:
            centred_MD: vectors minus `mean_D`.
            keys: keys whose values are read; 0 for values of others. Default `None`: all.
            without: products of the fit, by row, that the readers must not know.
            known_SD: (S, D) centred vectors of these products.
            least_noise (`float`): ν is at least this, see `QUERY_NOISE`. Default 0.

        Shapes: returns (M, P) float64.
        """
        sums = self.sums
        if known_SD is not None and len(without):
            sums = sums - Sums.of(known_SD, self.value_NP[list(without)], self.key_P, len(self.right_K))
        chosen = range(len(self.right_K)) if keys is None else keys
        probability_MP = np.zeros((len(centred_MD), len(self.key_P)))
        noise = max(self.noise, least_noise)
        for _, columns, probability_MV in self._probabilities(centred_MD, chosen, sums, noise):
            probability_MP[:, columns] = probability_MV
        return probability_MP

    def effects(self, *, without: Sequence[int] = (), known_SD: np.ndarray | None = None) -> np.ndarray:
        """Return E of the head of this file, without some products of the fit.

        With U = (YᵀY + 20 I)⁻¹ Y_Sᵀ, E' = E - U (I - Y_S U)⁻¹ (X̃_S - Y_S E), by the Woodbury identity.

        Args:
            without: products of the fit, by row.
            known_SD: (S, D) their centred vectors.

        Shapes: returns (P, D) float64.
        """
        if known_SD is None or not len(without):
            return self.effect_PD
        own_SP = self.value_NP[list(without)].toarray()
        solved_PS = np.stack([cg(self._gram, row, rtol=1e-8, atol=0.0)[0] for row in own_SP], axis=1)
        error_SD = known_SD - own_SP @ self.effect_PD
        return self.effect_PD - solved_PS @ np.linalg.solve(np.eye(len(own_SP)) - own_SP @ solved_PS, error_SD)

    def parts(
        self,
        centred_MD: np.ndarray,
        columns: np.ndarray,
        *,
        without: Sequence[int] = (),
        known_SD: np.ndarray | None = None,
        least_noise: float = 0.0,
    ) -> np.ndarray:
        """Return the parts of values in vectors: the probability of each value times its effect.

        Args:
            centred_MD: vectors minus `mean_D`.
            columns: C values.
            without, known_SD, least_noise: as for `read`.

        Shapes: returns (M, C, D) float64.
        """
        keys = sorted(set(self.key_P[columns].tolist()))
        read_MP = self.read(centred_MD, keys=keys, without=without, known_SD=known_SD, least_noise=least_noise)
        return read_MP[:, columns, None] * self.effects(without=without, known_SD=known_SD)[columns]

    @cached_property
    def _gram(self) -> scipy.sparse.csr_array:
        return (self.value_NP.T @ self.value_NP + SHRINKAGE * scipy.sparse.eye_array(len(self.key_P))).tocsr()

    @cached_property
    def _columns(self) -> list[np.ndarray]:
        return [np.flatnonzero(self.key_P == key) for key in range(len(self.right_K))]

    def _probabilities(
        self, centred_MD: np.ndarray, keys: Sequence[int], sums: Sums, noise: float
    ) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """Yield for each key its number, its columns, and the (M, V) probabilities of its values."""
        if not sums.count:
            return
        total_DD = sums.square_DD / sums.count
        ridge_DD = noise * np.trace(total_DD) / len(total_DD) * np.eye(len(total_DD)) + 1e-12 * np.eye(len(total_DD))
        for key in keys:
            columns = self._columns[key]
            absent = max(0, sums.count - sums.key_K[key])
            count_V = np.append(sums.value_P[columns], absent)
            total_VD = np.vstack([sums.value_PD[columns], sums.total_D - sums.key_KD[key]])
            mean_VD = total_VD / (count_V + SHRINKAGE)[:, None]
            share_V = count_V / sums.count
            within_DD = total_DD - (mean_VD.T * share_V) @ mean_VD + ridge_DD
            reader_DV = scipy.linalg.solve(within_DD, mean_VD.T, assume_a="sym")
            with np.errstate(divide="ignore"):
                score_MV = centred_MD @ reader_DV - 0.5 * np.einsum("vd,dv->v", mean_VD, reader_DV) + np.log(share_V)
            score_MV -= score_MV.max(axis=1, keepdims=True)
            probability_MV = np.exp(score_MV)
            probability_MV /= probability_MV.sum(axis=1, keepdims=True)
            yield key, columns, probability_MV[:, :-1]


def stated_values(stated: Sequence[Sequence[_Value]], row: Mapping[_Value, int]) -> scipy.sparse.csr_array:
    """Return the (N, P) matrix of stated values, 1 or 0.

    Args:
        stated: the values of each product; those without a row are left out.
        row: value → its column.
    """
    places = [(number, row[value]) for number, values in enumerate(stated) for value in values if value in row]
    rows, columns = np.array(places, dtype=np.int64).reshape(-1, 2).T
    return scipy.sparse.csr_array((np.ones(len(rows)), (rows, columns)), (len(stated), len(row)))
