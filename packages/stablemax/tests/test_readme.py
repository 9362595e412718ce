def test_readme(readme_example) -> None:
    names = readme_example()
    assert names["loss"].isfinite()
    assert 0 <= names["accuracy"] <= 1
