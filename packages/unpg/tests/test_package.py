"""The package keeps the form that all of them have; the README's example runs."""

import json
from pathlib import Path

from offprints.shared.testing import check_package

FOLDER = Path(__file__).parents[1]

PUBLIC = """
PairSimilarities pair_similarities iqr_bounds iqr_filter unified_cross_entropy HeadOutput MarginHead CosFaceHead
ArcFaceHead MagFaceHead MarginLoss UNPGLoss ShardedMarginHead VerificationResult verification_accuracy tar_at_far
SimilarityGap similarity_gap template_features iresnet
"""


def test_package() -> None:
    check_package("unpg", public=PUBLIC.split())


def test_readme(readme_example) -> None:
    names = readme_example()
    assert names["losses"][-1] < names["losses"][0]
    assert -2 < names["gap"].gap < 2
    assert 0.5 <= names["result"].accuracy <= 1
    assert ((names["tar"] >= 0) & (names["tar"] <= 1)).all()


def test_memory_in_the_readme_is_what_was_measured() -> None:
    record = json.loads((FOLDER / "benchmarks" / "results" / "memory.json").read_text(encoding="utf-8"))["peak_mib"]
    readme = (FOLDER / "README.md").read_text(encoding="utf-8")
    told = readme[readme.index("Peak memory of one") :].partition("\n")[0]
    few, many = record["256 rows, 10000 classes"], record["512 rows, 1000000 classes"]
    assert f"{few['UNPGLoss']:.0f} MiB at 256 rows" in told
    assert f"{few['official formula']:.0f} with the official formula" in told
    assert f"{few['class_chunk']:.0f} with `class_chunk=4096`" in told
    assert f"takes {many['class_chunk']:.0f} MiB" in told
