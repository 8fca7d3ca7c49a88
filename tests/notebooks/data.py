"""Stand-ins for the data files that notebooks read from AWS's public buckets: the same columns, other rows."""

import io
import random
import tarfile
from collections.abc import Callable

EXAMPLES = "sagemaker-example-files-prod-us-east-1"
SAMPLES = "sagemaker-sample-files"


def abalone(rows: int = 600, *, label: bool = True) -> bytes:
    """UCI's abalone: sex, seven measures, rings."""
    rng = random.Random(1)
    lines = []
    for _ in range(rows):
        length = rng.uniform(0.1, 0.8)
        measures = [
            length,
            length * 0.8,
            length * 0.27,
            length**3 * 4,
            length**3 * 1.7,
            length**3 * 0.9,
            length**3 * 1.2,
        ]
        rings = [str(max(1, round(3 + 12 * length + rng.gauss(0, 1))))] if label else []
        lines.append(",".join([rng.choice("MFI"), *(f"{each:.4f}" for each in measures), *rings]))
    return ("\n".join(lines) + "\n").encode()


def abalone_batch(rows: int = 100) -> bytes:
    """Abalone as the pipeline's first step transforms it: ten columns without the label."""
    rng = random.Random(2)
    lines = [",".join(f"{rng.gauss(0, 1):.4f}" for _ in range(7)) + ",0.0,1.0,0.0" for _ in range(rows)]
    return ("\n".join(lines) + "\n").encode()


def abalone_libsvm(rows: int = 400) -> bytes:
    """Abalone with the label first and eight numbered features."""
    rng = random.Random(3)
    lines = []
    for _ in range(rows):
        features = [rng.choice((1, 2, 3)), *(rng.uniform(0.1, 0.8) for _ in range(7))]
        label = round(3 + 12 * features[1])
        lines.append(f"{label} " + " ".join(f"{number}:{value:.4f}" for number, value in enumerate(features, 1)))
    return ("\n".join(lines) + "\n").encode()


def abalone_numbers(rows: int = 400) -> bytes:
    """Abalone as rows of numbers, the label first."""
    lines = [line.split() for line in abalone_libsvm(rows).decode().splitlines()]
    return "".join(
        ",".join([label, *(each.partition(":")[2] for each in more)]) + "\n" for label, *more in lines
    ).encode()


def point(columns: int = 69) -> bytes:
    """One record of a model with this many columns."""
    rng = random.Random(5)
    return ("0 " + " ".join(f"{number}:{rng.uniform(0, 50):.2f}" for number in range(columns)) + "\n").encode()


def breast_cancer() -> bytes:
    """UCI's breast cancer (diagnostic), as scikit-learn has it: a number, the diagnosis, thirty measures."""
    from sklearn.datasets import load_breast_cancer

    measures, benign = load_breast_cancer(return_X_y=True)
    lines = [
        ",".join([str(number), "B" if benign[number] else "M", *(f"{each:.5g}" for each in row)])
        for number, row in enumerate(measures)
    ]
    return ("\n".join(lines) + "\n").encode()


def california_housing(rows: int = 2000) -> bytes:
    """California's blocks of houses: place, age, rooms, people, income, value; in an archive."""
    rng = random.Random(6)
    lines = []
    for _ in range(rows):
        households, income = rng.randint(50, 2000), rng.uniform(0.5, 15)
        rooms = households * rng.uniform(3, 8)
        numbers = [
            rng.uniform(-124, -114),
            rng.uniform(32, 42),
            rng.randint(1, 52),
            round(rooms),
            round(rooms / 5),
            round(households * rng.uniform(1.5, 4)),
            households,
            income,
            round(40_000 * income + rng.gauss(0, 10_000)),
        ]
        lines.append(",".join(f"{each:.4f}" for each in numbers))
    text = ("\n".join(lines) + "\n").encode()
    archived = io.BytesIO()
    with tarfile.open(fileobj=archived, mode="w:gz") as archive:
        member = tarfile.TarInfo("CaliforniaHousing/cal_housing.data")
        member.size = len(text)
        archive.addfile(member, io.BytesIO(text))
    return archived.getvalue()


STAND_INS: dict[str, Callable[[], bytes]] = {
    f"{SAMPLES}/datasets/tabular/uci_abalone/abalone.csv": abalone,
    f"{EXAMPLES}/datasets/tabular/uci_abalone/abalone.csv": abalone,
    f"{EXAMPLES}/datasets/tabular/uci_abalone/abalone.libsvm": abalone_libsvm,
    f"{SAMPLES}/datasets/tabular/uci_abalone/abalone.libsvm": abalone_libsvm,
    **{
        f"{SAMPLES}/datasets/tabular/uci_abalone/{name}/abalone.{name}": abalone_libsvm
        for name in ("train", "test", "validation")
    },
    f"{SAMPLES}/datasets/tabular/uci_abalone/train_csv/abalone_dataset1_train.csv": abalone_numbers,
    **{f"{EXAMPLES}/models/async-inference/input-files/test_point_{number}.libsvm": point for number in range(25)},
    f"{EXAMPLES}/datasets/tabular/breast_cancer/wdbc.csv": breast_cancer,
    f"{EXAMPLES}/datasets/tabular/california_housing/cal_housing.tgz": california_housing,
    "sagemaker-servicecatalog-seedcode-us-east-1/dataset/abalone-dataset-batch": abalone_batch,
}
