"""The figures of the experiment: fields and errors, trajectories, weights over training."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from offprints.shared.experiment import Run

Result = dict[str, Any]


def fields(run: Run, name: str, causal: Result, plain: Result | None) -> None:
    """Draw u(t, x) of the reference and of each training, the error of each, and all of them at the end."""
    t, x = causal["t"].numpy(), causal["x"].numpy()
    truth = causal["reference"].numpy()
    panels = {"causal": causal} | ({} if plain is None else {"plain PINN": plain})
    scale = float(abs(truth).max())
    with run.figure(name, nrows=2, ncols=1 + len(panels), squeeze=False) as (figure, axes):
        image = _map(axes[0, 0], t, x, truth, "reference", vmin=-scale, vmax=scale, cmap="RdBu_r")
        ends = {"reference": truth[-1]}
        for column, (label, result) in enumerate(panels.items(), start=1):
            predicted = result["prediction"].numpy()
            ends[label] = predicted[-1]
            title = f"{label}: error {result['error']:.2g}"
            _map(axes[0, column], t, x, predicted, title, vmin=-scale, vmax=scale, cmap="RdBu_r")
            wrong = _map(
                axes[1, column],
                t,
                x,
                abs(predicted - truth),
                f"|{label} − reference|",
                vmin=0,
                vmax=scale,
                cmap="magma_r",
            )
        figure.colorbar(image, ax=list(axes[0, :]), label="u")
        figure.colorbar(wrong, ax=list(axes[1, :]), label="absolute error")
        axes[0, 0].set_ylabel("x")
        _compare(axes[1, 0], x, ends)
        axes[1, 0].set(xlabel="x", ylabel="u", title=f"at t = {t[-1]:.3g}")


def _map(ax: Any, t: Any, x: Any, u: Any, title: str, **shown: Any) -> Any:
    image = ax.pcolormesh(t, x, u.T, shading="nearest", rasterized=True, **shown)
    ax.set(title=title, xlabel="t")
    ax.grid(False)
    return image


def _compare(ax: Any, where: Any, lines: dict[str, Any]) -> None:
    """Draw the reference in black, the causal training dashed above it, and the plain PINN."""
    styles: dict[str, dict[str, Any]] = {
        "reference": {"color": "black", "linewidth": 1.2},
        "causal": {"linestyle": "--", "linewidth": 2.4},
        "plain PINN": {},
    }
    for label, values in lines.items():
        ax.plot(where, values, label=label, **styles[label])
    ax.legend(fontsize="small")


def trajectories(run: Run, name: str, causal: Result, plain: Result | None) -> None:
    """Draw each component over time."""
    t, truth = causal["t"], causal["reference"]
    with run.figure(name, nrows=3, sharex=True, figsize=(7.0, 6.0)) as (_, axes):
        for i, (ax, component) in enumerate(zip(axes, "xyz", strict=True)):
            others = {} if plain is None else {"plain PINN": plain["prediction"][:, i]}
            _compare(ax, t, {"reference": truth[:, i], "causal": causal["prediction"][:, i]} | others)
            ax.set_ylabel(component)
            if i:
                ax.get_legend().remove()
        axes[0].legend(ncols=3, loc="upper left")
        axes[0].margins(y=0.35)
        axes[-1].set_xlabel("t")


def flow(run: Run, name: str, causal: Result) -> None:
    """Draw the vorticity of reference and training, and the error, at the middle and at the end."""
    x = causal["x"].numpy()
    truth, predicted = causal["reference"].numpy(), causal["prediction"].numpy()
    with run.figure(name, nrows=2, ncols=3, sharex=True, sharey=True) as (figure, axes):
        for row, k in zip(axes, (len(truth) // 2, len(truth) - 1), strict=True):
            scale = float(abs(truth[k]).max())
            panels = {"reference": truth[k], "causal": predicted[k], "error": predicted[k] - truth[k]}
            for ax, (label, values) in zip(row, panels.items(), strict=True):
                image = ax.pcolormesh(
                    x, x, values, vmin=-scale, vmax=scale, cmap="RdBu_r", shading="nearest", rasterized=True
                )
                ax.set_title(f"{label}, t = {float(causal['t'][k]):.2g}")
                ax.set_aspect("equal")
                ax.grid(False)
            figure.colorbar(image, ax=list(row), label="vorticity")


def weights(run: Run, name: str, causal: Result, length: float) -> None:
    """Draw the weights over local time, one line per check, dark at the end."""
    import matplotlib

    table, steps = causal["weights"].numpy(), causal["steps"]
    chosen = sorted({round(i * (len(table) - 1) / 11) for i in range(12)})
    colors = matplotlib.colormaps["viridis_r"]
    with run.figure(name) as (_, ax):
        for rank, i in enumerate(chosen):
            t = [length * k / (table.shape[1] - 1) for k in range(table.shape[1])]
            ax.plot(t, table[i], color=colors((rank + 1) / len(chosen)), label=f"{steps[i]}")
        ax.set(xlabel="t", ylabel="weight", ylim=(-0.03, 1.03), title="causal weights over training")
        ax.legend(title="step", loc="center left", bbox_to_anchor=(1.0, 0.5))


def errors(run: Run, results: dict[str, Result]) -> None:
    """Draw the error and the residual of every training over its steps."""
    if not results:
        return
    with run.figure("errors", ncols=2) as (_, axes):
        for i, name in enumerate(sorted({key.removesuffix(" plain") for key in results})):
            for suffix, style in (("", "-"), (" plain", "--")):
                result = results.get(name + suffix)
                if result is not None:
                    label = name + (", plain PINN" if suffix else ", causal")
                    axes[0].semilogy(result["steps"], result["errors"], style, color=f"C{i}", label=label)
                    axes[1].semilogy(result["steps"], result["residual"], style, color=f"C{i}")
        axes[0].set(xlabel="step", title="relative L2 error")
        axes[1].set(xlabel="step", title="mean residual loss")
        axes[0].legend()
