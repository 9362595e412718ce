import json


def test_smoke(cli, tmp_path) -> None:
    run = cli("run", "pndm", "--preset", "smoke", "--out", str(tmp_path))
    assert run.returncode == 0, run.stderr
    (result,) = tmp_path.glob("pndm/*/result.json")
    assert json.loads(result.read_text())["paper"] == "pndm"
