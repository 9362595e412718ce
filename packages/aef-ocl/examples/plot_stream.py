"""
A stream with rare classes, seen once
=====================================

Scans of digits come in an order that drifts from 0 to 9, a hundred zeros but only three nines. No scan is stored. The
classifier is at every moment the one that all scans so far would give together; for its predictions, each class is
filled up to the largest with features drawn from its running mean and deviation.
"""

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from offprints.aef_ocl import AEFOCLClassifier, long_tailed_stream, mean_class_accuracy

# %%
# The stream
# ----------
# Any labeled data become such a stream. The rows come one at a time; here sixteen make a batch.

X, y = load_digits(return_X_y=True)
X_train, X_test, y_train, y_test = train_test_split(X / 16, y, test_size=600, random_state=0)
rows, labels = zip(*long_tailed_stream(X_train, y_train, ratio=0.01, seed=0), strict=True)
rows, labels = np.array(rows), np.array(labels)
print("samples of each digit:", np.bincount(labels))

# %%
# One pass
# --------
# Labels may appear at any time. ``balance`` can be switched between predictions: the pseudo-features never enter the
# running sums.

model = AEFOCLClassifier(buffer_size=512)
seen, balanced, plain = [], [], []
for start in range(0, len(rows), 16):
    model.partial_fit(rows[start : start + 16], labels[start : start + 16])
    seen.append(min(start + 16, len(rows)))
    balanced.append(mean_class_accuracy(y_test, model.set_params(balance=True).predict(X_test)))
    plain.append(mean_class_accuracy(y_test, model.set_params(balance=False).predict(X_test)))
print(f"mean class accuracy at the end: {balanced[-1]:.3f} with pseudo-features, {plain[-1]:.3f} without")

# %%
# Who gains
# ---------
# The rare digits, at the right, and at little cost for the frequent ones.

accuracy = {}
for name, balance in (("with pseudo-features", True), ("without", False)):
    predicted = model.set_params(balance=balance).predict(X_test)
    accuracy[name] = [100 * np.mean(predicted[y_test == digit] == digit) for digit in range(10)]

figure, (left, right) = plt.subplots(ncols=2, figsize=(10, 4), layout="constrained")
left.plot(seen, 100 * np.array(balanced), label="with pseudo-features")
left.plot(seen, 100 * np.array(plain), label="without")
left.set(xlabel="samples seen", ylabel="mean class accuracy, %", title="Along the stream")
left.legend(frameon=False)
for shift, (name, values) in zip((-0.2, 0.2), accuracy.items(), strict=True):
    right.bar(np.arange(10) + shift, values, width=0.4, label=name)
right.set(xlabel="digit", ylabel="accuracy, %", title="Digit by digit")
right.set_xticks(range(10), [f"{digit}\n{count}" for digit, count in enumerate(np.bincount(labels))])
figure.show()
