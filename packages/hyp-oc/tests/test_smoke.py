"""The experiment through the command line; a file of its own, for another process may run it."""


def test_smoke(paper_run, tmp_path) -> None:
    run = paper_run("hyp-oc", "--preset", "smoke", out=tmp_path)
    assert set(run.claims) == {"displaced", "compact", "float32"}
    assert run.figures == {"disc", "scores", "roc"}
    assert run.claims["float32"]["holds"]
