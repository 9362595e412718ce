import json


def test_smoke(cli, tmp_path) -> None:
    run = cli("run", "sp2ot", "--preset", "smoke", "--out", str(tmp_path))
    assert run.returncode == 0, run.stderr
    (result,) = tmp_path.glob("sp2ot/*/result.json")
    assert json.loads(result.read_text())["paper"] == "sp2ot"
