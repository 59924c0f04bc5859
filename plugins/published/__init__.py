"""Table 2 of the GMAIR paper (Zhu et al. 2021, arXiv 2106.01722), for comparison with our own figures."""

from __future__ import annotations

from objbench.hookspecs import Published, hookimpl

SOURCE = "GMAIR, arXiv 2106.01722, Table 2"
HEADINGS = {"acc_many_to_one": "ACC, many to one (%)"}
NOTE = (
    "The paper's ACC lets several clusters stand for one class (its Eq. 16): it is compared with "
    "acc_many_to_one. Our acc assigns clusters to classes one to one, and is never higher."
)

Figure = tuple[float, float | None]
"""Percent as printed in the paper: the mean, and the number after the ±."""


def row(
    model: str, model_label: str, data_label: str, ap: Figure | None, acc: Figure, nmi: Figure | None
) -> Published:
    """One row of the paper's table."""
    printed = {"ap50": ap, "acc_many_to_one": acc, "nmi": nmi}
    values = {
        metric: (round(mean / 100, 6), None if spread is None else round(spread / 100, 6))
        for metric, (mean, spread) in ((m, f) for m, f in printed.items() if f is not None)
    }
    return Published(
        model, data_label.lower(), values, SOURCE, model_label, data_label, headings=HEADINGS, note=NOTE
    )


# The paper quotes the first block from other papers: clustering of single, centred MNIST digits. IIC's own
# ACC is one to one; at 98 % every class has its own cluster, so both definitions give the same value.
TABLE_2 = (
    row("iic", "IIC", "MNIST", None, (98.4, 0.652), None),
    row("aae-16", "AAE (C=16)", "MNIST", None, (90.45, 2.05), None),
    row("aae-30", "AAE (C=30)", "MNIST", None, (95.90, 1.13), None),
    row("gmvae-1", "GMVAE (M=1)", "MNIST", None, (77.78, 5.75), None),
    row("gmvae-10", "GMVAE (M=10)", "MNIST", None, (82.31, 3.75), None),
    row("gmair", "GMAIR", "MultiMNIST", (97.3, 0.10), (80.4, 0.48), (75.5, 0.66)),
    row("spair", "SPAIR + GMM", "MultiMNIST", (90.3, None), (59.4, 1.50), (56.3, 1.41)),
    row("space", "SPACE + GMM", "MultiMNIST", (96.7, None), (68.8, 3.43), (65.8, 2.85)),
    row("gmair", "GMAIR", "Fruit2D", (84.9, 1.56), (90.9, 0.32), (85.7, 1.25)),
    row("spair", "SPAIR + GMM", "Fruit2D", (83.3, None), (88.1, 0.70), (78.4, 0.51)),
    row("space", "SPACE + GMM", "Fruit2D", (93.8, None), (95.0, 1.99), (87.0, 2.20)),
)


@hookimpl
def objbench_published() -> tuple[Published, ...]:
    """The paper's complete table, in its row order."""
    return TABLE_2
