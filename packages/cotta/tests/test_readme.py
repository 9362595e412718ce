def test_readme(readme_example) -> None:
    names = readme_example()
    assert names["errors"].keys() == {"source", "bn", "tent", "cotta"}
