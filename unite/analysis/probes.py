"""What a linear map can read from the latents: classes of images, properties of molecules; with baselines."""

import csv
import math
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from unite.errors import require_packages
from unite.modalities.molecule.data.qm9.datamodule import QM9DataModule
from unite.modalities.molecule.data.qm9.table import find_qm9pack

PROPERTIES = {
    "HOMO_LUMO_gap_au": ("gap", "eV", 27.211386),
    "Polarizability_bohr3": ("polarizability", "bohr³", 1.0),
    "Dipole_debye": ("dipole moment", "D", 1.0),
    "HOMO_au": ("HOMO", "eV", 27.211386),
    "LUMO_au": ("LUMO", "eV", 27.211386),
    "R2_bohr2": ("spatial extent", "bohr²", 1.0),
    "ZPVE_au": ("zero-point energy", "eV", 27.211386),
    "Heatcapacity_Cv_cal_mol_K": ("heat capacity", "cal/(mol K)", 1.0),
}
"""Columns of qm9pack's CSV files: name, unit, and factor from the column's unit (1 hartree = 27.211386 eV)."""

MIN_KNOWN = 10
"""Samples, in training and in test, of which a property must be known to be probed."""

RIDGE_PENALTIES = tuple(float(penalty) for penalty in np.logspace(-4, 4, 17))
LOGISTIC_STRENGTHS = tuple(float(strength) for strength in np.logspace(-2, 2, 5))


@dataclass(frozen=True)
class PooledLatents:
    """Latents of N samples, and what is known of the samples.

    Attributes:
        pooled: Mean over the real registers, then sum over them, shape (N, 2 C).
        flat: All registers one after another, zero where there is none, shape (N, K C).
        rows: Latents of all real registers, shape (n, C).
        slots: Register of each of the rows, shape (n,).
        labels: Class of each sample, shape (N,), or None.
        baseline: What is known without the network, shape (N, F), or None: counts of each atom type (molecules), or
            the pixels (images, made small).
        baseline_name: What that is.
        molecule_id: Number of each molecule in the data set, shape (N,), or None.
        properties: Properties that the samples carry along, each (N,), NaN where unknown.
    """

    pooled: Tensor
    flat: Tensor
    rows: Tensor
    slots: Tensor
    labels: Tensor | None
    baseline: Tensor | None
    baseline_name: str
    molecule_id: Tensor | None
    properties: dict[str, Tensor] = field(default_factory=dict)


def read_properties(datamodule: Any, molecule_id: Tensor) -> dict[str, Tensor]:
    """Measured properties (N,) of molecules of QM9 by column, from the CSV files that the data came from.

    The cache of the datamodule has no properties, so the files are read anew (seconds for all of QM9).

    Returns:
        Columns of ``PROPERTIES`` in the units there; empty if the data is no QM9, or came without CSV files.
    """
    files = _csv_files(datamodule)
    rows = {number: row for row, number in enumerate(molecule_id.tolist())}
    found = {column: torch.full((len(rows),), math.nan, dtype=torch.float64) for column in PROPERTIES}
    for file in files:
        with file.open(newline="", encoding="utf8") as lines:
            reader = csv.reader(lines)
            header = next(reader, [])
            places = {column: header.index(column) for column in PROPERTIES if column in header}
            index = header.index("Index")
            for line in reader:
                row = rows.get(int(line[index]))
                if row is not None:
                    for column, place in places.items():
                        found[column][row] = float(line[place]) * PROPERTIES[column][2]
    return {column: values for column, values in found.items() if values.isfinite().all()}


def _csv_files(datamodule: Any) -> list[Path]:
    if not isinstance(datamodule, QM9DataModule):
        return []
    return datamodule.csv_files or (find_qm9pack() if datamodule.source != "pyg" else [])


@dataclass(frozen=True)
class Probed:
    """Features of training and test samples, (N, F) and (M, F), and what to predict, (N,) and (M,)."""

    train_features: Tensor
    train_targets: Tensor
    test_features: Tensor
    test_targets: Tensor

    def as_numpy(self) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any], NDArray[Any]]:
        """The four as arrays, features in float64."""
        return (
            self.train_features.double().numpy(),
            self.train_targets.numpy(),
            self.test_features.double().numpy(),
            self.test_targets.numpy(),
        )


def regression_probe(data: Probed) -> dict[str, float]:
    """Ridge regression on standardised features; R² and mean absolute error of the test samples.

    The penalty is chosen by leave-one-out error on the training samples.
    """
    require_analysis_packages()
    from sklearn.linear_model import RidgeCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    x, y, test_x, test_y = data.as_numpy()
    model = make_pipeline(StandardScaler(), RidgeCV(RIDGE_PENALTIES)).fit(x, y)
    return _regression_scores(model.predict(test_x), test_y)


def _regression_scores(predicted: NDArray[Any], targets: NDArray[Any]) -> dict[str, float]:
    """R² and mean absolute error of predictions, both (M,)."""
    error = targets - predicted
    total = ((targets - targets.mean()) ** 2).sum()
    return {"r2": 1 - float((error**2).sum() / total), "mae": float(np.abs(error).mean())}


def classification_probe(data: Probed) -> dict[str, float]:
    """Logistic regression on standardised features; accuracy on the test samples.

    The penalty is chosen on the last fifth of the training samples.
    """
    require_analysis_packages()
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    x, y, test_x, test_y = data.as_numpy()

    def fitted(strength: float, rows: slice) -> Any:
        model = make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=300))
        with warnings.catch_warnings():  # a solver that stops early still gives a linear probe
            warnings.simplefilter("ignore")
            return model.fit(x[rows], y[rows])

    inner = slice(0, len(x) - max(1, len(x) // 5))
    held_out = slice(inner.stop, None)
    scores = {s: fitted(s, inner).score(x[held_out], y[held_out]) for s in LOGISTIC_STRENGTHS}
    best = max(scores, key=lambda strength: scores[strength])
    return {"accuracy": float(fitted(best, slice(None)).score(test_x, test_y))}


def probe_latents(
    train: PooledLatents, test: PooledLatents, train_properties: dict[str, Tensor], test_properties: dict[str, Tensor]
) -> dict[str, Any]:
    """Linear probes of all that is known of the samples.

    Args:
        train: Samples that the probes are fitted to.
        test: Samples that they are judged by.
        train_properties: Properties of the former by column, from :func:`read_properties` or carried along; NaN where
            unknown.
        test_properties: Properties of the latter.

    Returns:
        Plain values: number of training and test samples, ``classes`` (accuracy of each kind of features) and
        ``properties`` (R² and mean absolute error by property and kind of features).
    """
    result: dict[str, Any] = {"num_train": len(train.pooled), "num_test": len(test.pooled)}
    features = _features(train, test)
    if train.labels is not None and test.labels is not None and len(train.labels.unique()) > 1:
        most_common = int(train.labels.bincount().argmax())
        share = float((test.labels == most_common).double().mean())
        result["classes"] = {"most frequent class": {"accuracy": share}}
        for kind, (x, test_x) in features.items():
            result["classes"][kind] = classification_probe(Probed(x, train.labels, test_x, test.labels))
    probes: dict[str, Any] = {}
    for column in train_properties.keys() & test_properties.keys():
        name, unit, _ = PROPERTIES.get(column, (column, "", 1.0))
        known, test_known = train_properties[column].isfinite(), test_properties[column].isfinite()
        y, test_y = train_properties[column][known], test_properties[column][test_known]
        if len(y) < MIN_KNOWN or len(test_y) < MIN_KNOWN:
            continue
        constant = np.full(len(test_y), float(y.mean()))
        scores: dict[str, Any] = {"mean of training samples": _regression_scores(constant, test_y.numpy())}
        for kind, (x, test_x) in features.items():
            scores[kind] = regression_probe(Probed(x[known], y, test_x[test_known], test_y))
        probes[name] = {"unit": unit, "std": float(test_y.std()), "scores": scores}
    if probes:
        ordered = [name for name, *_ in PROPERTIES.values() if name in probes]
        result["properties"] = {name: probes[name] for name in [*ordered, *sorted(set(probes) - set(ordered))]}
    return result


def _features(train: PooledLatents, test: PooledLatents) -> dict[str, tuple[Tensor, Tensor]]:
    """Kinds of features, of training and test samples."""
    width = max(train.flat.shape[1], test.flat.shape[1])  # the largest sample may be in either
    flat = [F.pad(part.flat, (0, width - part.flat.shape[1])) for part in (train, test)]
    features = {"latents (mean and sum)": (train.pooled, test.pooled), "latents (all registers)": (flat[0], flat[1])}
    if train.baseline is not None and test.baseline is not None:
        name = train.baseline_name
        features[name] = (train.baseline, test.baseline)
        both = [torch.cat([part.baseline, part.pooled], dim=1) for part in (train, test) if part.baseline is not None]
        features[f"{name} and latents (mean and sum)"] = (both[0], both[1])
    return features


def require_analysis_packages() -> None:
    """Say what to install, before long work.

    Raises:
        UserError: matplotlib or scikit-learn is not installed.
    """
    require_packages("analysis of a model", "analysis", "matplotlib", "sklearn")
