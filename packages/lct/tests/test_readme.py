import torch


def test_readme(readme_example) -> None:
    names = readme_example()
    assert names["out"].loss.isfinite()
    assert names["images"].shape == torch.Size([4, 3, 64, 64])
    assert names["images"].isfinite().all()
