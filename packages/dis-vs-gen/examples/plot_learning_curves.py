"""
How many labels before logistic regression is worth it
======================================================

Naive Bayes assumes much and needs few labels; logistic regression assumes less and needs more. On the same features
their learning curves cross, and the crossing answers a practical question: with the labels at hand, which of the two?
"""

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_wine
from sklearn.model_selection import train_test_split

from offprints.dis_vs_gen import GaussianNaiveBayes, LearningCurve, LogisticRegression, crossover, learning_curve

# %%
# Features and labels
# -------------------
# Any table of features does. With deep networks it is usually the input of the last layer, which `extract_features`
# reads from a frozen model; here it is the chemical analysis of 178 wines from three growers.

X, y = load_wine(return_X_y=True)
sizes = [6, 10, 15, 20, 30, 45, 70, 110]

# %%
# Two learning curves
# -------------------
# Each estimator is trained on five random subsets of every size, and that for eight splits into training and test
# data. The subsets depend on the seed alone, so that both estimators see the same ones; the package trains all subsets
# of a size at once.

errors = {"naive Bayes (generative)": [], "logistic regression (discriminative)": []}
for seed in range(8):
    X_train, X_test, y_train, y_test = train_test_split(X, y, train_size=120, random_state=seed, stratify=y)
    for label, estimator in zip(errors, (GaussianNaiveBayes, LogisticRegression), strict=True):
        curve = learning_curve(estimator, X_train, y_train, X_test, y_test, sizes, repeats=5, seed=seed)
        errors[label].append(curve.errors)
curves = {label: LearningCurve(sizes, np.concatenate(parts)) for label, parts in errors.items()}
crossing = crossover(*curves.values())
print(f"logistic regression has the lower mean error from {crossing} labels on")

# %%
# Where they cross
# ----------------
# Left of the crossing naive Bayes makes fewer errors. Right of it more labels hardly help it any further: it has come
# near its own limit, which is the higher one. The bands are two standard errors of the mean.

figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
for (label, curve), color in zip(curves.items(), ("#0072b2", "#d55e00"), strict=True):
    mean = 100 * curve.errors.mean(0)
    margin = 200 * curve.errors.std(0) / len(curve.errors) ** 0.5
    axes.plot(sizes, mean, "o-", color=color, label=label)
    axes.fill_between(sizes, mean - margin, mean + margin, color=color, alpha=0.15, linewidth=0)
if crossing is not None:
    axes.axvline(crossing, color="gray", linestyle=":", linewidth=1.5)
axes.set(
    xscale="log", xlabel="labels to train on", ylabel="test error, %", title="Which classifier for this many labels?"
)
axes.set_xticks(sizes, [str(size) for size in sizes])
axes.minorticks_off()
axes.legend(frameon=False)
figure.show()
