"""The sort and the ranks, against NumPy's; where compiled code is kept."""

import numpy as np
import pytest
from numba.core.caching import CacheImpl

from offprints.betti_matching._kernels.compile import _can_cache
from offprints.betti_matching._kernels.levels import rank_one, rank_two
from offprints.betti_matching._kernels.order import sort_items

RNG = np.random.default_rng(0)
ARRAYS = {
    "noise": RNG.random(3000),
    "signs": RNG.normal(size=3000),
    "float32": RNG.random(3000).astype(np.float32).astype(float),
    "levels": RNG.integers(-5, 6, 3000) / 2,
    "constant": np.full(50, 0.1),
    "extremes": RNG.choice([-np.inf, -1e300, -1.0, -5e-324, -0.0, 0.0, 5e-324, 1.0, 1.7e308, np.inf], 500),
    "magnitudes": RNG.choice([-1, 1], 3000) * 10 ** RNG.uniform(-300, 300, 3000),
    "clusters": 1 + 2.0**-50 * RNG.integers(0, 4, 3000) + RNG.integers(0, 2, 3000),  # equal in their leading bits
    "cluster and outlier": np.append(1 + 2.0**-51 * RNG.permutation(3000), -1e300),  # too many for insertion
    "one": np.array([3.0]),
    "none": np.empty(0),
}


@pytest.mark.parametrize("name", ARRAYS)
def test_sort_is_stable_and_exact(name: str) -> None:
    values = ARRAYS[name]
    before = values.copy()
    ordered, items = sort_items(values, np.arange(values.size, dtype=np.int32))
    np.testing.assert_array_equal(items, np.argsort(values, kind="stable"))
    np.testing.assert_array_equal(ordered, np.sort(values))
    np.testing.assert_array_equal(values, before)


@pytest.mark.parametrize("name", [name for name in ARRAYS if name != "none"])
@pytest.mark.parametrize("union", [True, False])
def test_ranks(name: str, union: bool) -> None:
    f = ARRAYS[name]
    g = np.roll(f, 7) if name != "levels" else np.round(f)
    c = np.minimum(f, g) if union else np.maximum(f, g)
    np.testing.assert_array_equal(rank_one(f), np.unique(f, return_inverse=True)[1])
    for ranks, image in zip(rank_two(np.concatenate((f, g)), union), (f, g, c), strict=True):
        assert ranks.dtype == np.int32
        np.testing.assert_array_equal(ranks, np.unique(image, return_inverse=True)[1])


def test_nowhere_to_keep_compiled_code(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _can_cache()
    for implementation in CacheImpl.__subclasses__():
        monkeypatch.setattr(implementation, "_locator_classes", [])
    with pytest.warns(RuntimeWarning, match="NUMBA_CACHE_DIR"):
        assert not _can_cache()
