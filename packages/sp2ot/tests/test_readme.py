def test_readme(readme_example) -> None:
    names = readme_example()
    assert names["labels"].shape == (len(names["features"]),)
    assert names["scores"]["balanced_accuracy"] > 0.5
    assert names["result"].converged
    assert names["output"].loss.isfinite()
