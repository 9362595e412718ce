"""An experiment: a config dataclass, its presets, its claims; run directories that can be resumed.

``reproduce.py`` of a package declares one, and ``offprints run NAME`` carries it out::

    @dataclass(frozen=True, kw_only=True)
    class Config:
        steps: int = 300  # of training (Section 4); the comment is the flag's help


    def train(config: Config, method: str, seed: int) -> dict[str, float]: ...


    def reproduce(config: Config, run: Run) -> None:
        grid = {f"{method}-{seed}": partial(train, config, method, seed) for method in METHODS for seed in run.seeds(3)}
        results = run.units(grid, workers=2)
        ...
        run.claim("error", "the method errs less than the baseline", ours, "<", theirs, paper_value=0.12)


    experiment = Experiment(
        name="my-paper",
        title="The paper's title",
        arxiv="2211.15272",
        config=Config,
        presets={"smoke": Config(steps=3), "quick": Config(), "paper": Config(steps=100_000)},
        function=reproduce,
    )

A function that is run again with ``--resume`` starts from its top: what ``run.unit`` and ``run.units`` have stored
comes back at once, and a long training continues from ``run.restore()``. Several long trainings are the parts of a
run: ``run.part(key).once(function)``.
"""

from offprints.shared.experiment.claims import Claim, Relation
from offprints.shared.experiment.experiment import Experiment
from offprints.shared.experiment.part import Part
from offprints.shared.experiment.run import Run
from offprints.shared.experiment.units import UnitError

__all__ = ["Claim", "Experiment", "Part", "Relation", "Run", "UnitError"]
