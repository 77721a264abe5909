"""One fit of interpret-core's DP-EBM, as a program of its own environment; nothing of ours is imported.

    python -P ebm_fit.py TRAIN TEST BOUNDS LABEL EPSILON DELTA SEED

TRAIN and TEST are CSV files with a header; BOUNDS is JSON: a column of numbers → its public bounds. All other
columns but LABEL, 0 or 1, are nominal. It says the chance of 1 that it gives each row of TEST, as JSON.
"""

import json
import sys
from importlib import import_module


def main(*arguments: str) -> None:
    """Fit and foretell."""
    train, test, bounds, label, epsilon, delta, seed = arguments
    pandas = import_module("pandas")
    numbers: dict[str, list[float]] = json.loads(bounds)
    # A text such as NA is one, not a missing value.
    own, other = (pandas.read_csv(path, keep_default_na=False) for path in (train, test))
    names = [name for name in own.columns if name != label]
    model = import_module("interpret.privacy").DPExplainableBoostingClassifier(
        feature_names=names,
        feature_types=["continuous" if name in numbers else "nominal" for name in names],
        epsilon=float(epsilon),
        delta=float(delta),
        # Without them it takes the bounds from the rows.
        privacy_bounds={name: tuple(each) for name, each in numbers.items()},
        random_state=int(seed),
        n_jobs=1,
    )
    model.fit(own[names], own[label].to_numpy())
    print(json.dumps(model.predict_proba(other[names])[:, 1].tolist()))


if __name__ == "__main__":
    main(*sys.argv[1:])
