def test_readme(readme_example) -> None:
    errors = readme_example()["errors"]
    assert errors.keys() == {"source", "bn", "tent", "cotta"}
    assert len({round(error, 1) for error in errors.values()}) == 4, "four methods, four numbers"
    assert errors["bn"] < errors["source"] - 20
