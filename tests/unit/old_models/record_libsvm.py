"""Records the answers of AWS's XGBoost container: models trained on libsvm text, requests, and its outcomes.

It runs in an environment of the container's own XGBoost, on a checkout of the container's source:

    VENV/bin/python record_libsvm.py CHECKOUT/src VERSION.json

The container's serve_utils and encoder run as they are; the packages of the container that these paths do not need are
empty modules. Python 3.6 can run this file; ruff and mypy skip it. libsvm.json.xz holds the requests of `bodies`, and the
facts of seven runs: XGBoost 0.90 (branch 0.90-2), 1.0.0 (tag v1.0-1), 1.2.0 (v1.2-2), 1.3.3 (v1.3-1), 1.5.2 (v1.5-1),
1.7.4 (v1.7-1-1) and 3.0.5 (v3.0-5).

A model whose file counts from 0 has a base_score of its own; a model whose file counts from 1 has XGBoost's default.
"""

import base64
import importlib.machinery
import json
import logging
import os
import pickle
import random
import sys
import tempfile
import types
import warnings

import numpy as np
import xgboost

FEATURES = 4
ROWS = 60
OBJECTIVES = {
    "reg:linear": "any", "reg:squarederror": "any", "reg:squaredlogerror": "positive", "reg:logistic": "unit",
    "reg:pseudohubererror": "any", "reg:absoluteerror": "any", "reg:quantileerror": "any", "reg:gamma": "positive",
    "reg:tweedie": "positive", "binary:logistic": "binary", "binary:logitraw": "binary", "binary:hinge": "binary",
    "count:poisson": "positive", "multi:softmax": "class", "multi:softprob": "class", "rank:pairwise": "class",
    "rank:ndcg": "class", "rank:map": "binary", "survival:cox": "positive", "survival:aft": "positive",
}  # fmt: skip
EXTRA = {
    "multi:softmax": {"num_class": 3}, "multi:softprob": {"num_class": 3}, "reg:quantileerror": {"quantile_alpha": 0.4},
}  # fmt: skip


class Stub(types.ModuleType):
    """A module whose every attribute is a class."""

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return {"CSV": "text/csv", "JSON": "application/json"}.get(name, type(name, (Exception,), {}))


class Stubs:
    """Packages of the container that the paths recorded here do not need."""

    NAMES = ("sagemaker_containers", "mlio", "pandas", "pyarrow", "sklearn", "smdebug", "dask", "retrying", "psutil")

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in self.NAMES:
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec):
        return Stub(spec.name)

    def exec_module(self, module):
        if module.__name__ == "sagemaker_containers":
            module._content_types = Stub("_content_types")


def container(source):
    sys.meta_path.append(Stubs())
    if not hasattr(np, "int") and np.__version__ < "2":
        np.int, np.float = int, float  # the numpy that the container had
    sys.path.insert(0, source)
    bare = types.ModuleType("sagemaker_xgboost_container.algorithm_mode")  # its __init__ would start a web server
    bare.__path__ = [os.path.join(source, *bare.__name__.split("."))]
    sys.modules[bare.__name__] = bare
    from sagemaker_xgboost_container import encoder
    from sagemaker_xgboost_container.algorithm_mode import serve_utils

    logging.disable(logging.CRITICAL)
    for name in [each for each in sys.modules if each.partition(".")[0] in ("pandas", "pyarrow", "sklearn")]:
        del sys.modules[name]  # XGBoost asks for these itself
    sys.meta_path.pop()
    return encoder, serve_utils


def label(kind, draw, row):
    total = sum(value for value in row if value is not None)
    return {
        "any": lambda: round(total * 2 - 1, 2),
        "positive": lambda: round(abs(total) + 0.5, 2),
        "unit": lambda: round(min(1, abs(total) / 8), 2),
        "binary": lambda: int(total > 0.5),
        "class": lambda: int(total > -0.5) + int(total > 1),
    }[kind]()


def rows(draw):
    found = []
    for _ in range(ROWS):
        found.append([None if draw.random() < 0.25 else draw.randrange(-8, 9) / 4 for _ in range(FEATURES)])
    found[0] = [0.5, -1.0, 1.5, 2.0]  # all features occur
    return found


def line(row, base, lead):
    cells = ["%d:%g" % (index, value) for index, value in enumerate(row, base) if value is not None]
    return " ".join([lead] * bool(lead) + cells)


def bodies(base):
    """Requests for a model whose file counts from `base`; each is (name, content type, body)."""
    full, other = [0.25, -1.5, 0.75, 2.0], [-1.25, 1.0, -0.5, 0.5]
    short, gaps = [1.5, -0.25, -1.0, None], [None, 0.5, None, -1.75]
    width = FEATURES + base
    yield "labelled", "text/libsvm", "\n".join(line(row, base, "1") for row in (full, other, short, gaps))
    yield "without labels", "text/libsvm", "\n".join(line(row, base, "") for row in (full, other, short, gaps))
    yield "last feature absent", "text/libsvm", line(short, base, "0")
    yield "first feature only", "text/libsvm", "0 %d:1.25" % base
    yield "label only within", "text/libsvm", "\n".join([line(full, base, "1"), "0", line(other, base, "0")])
    yield "order reversed", "text/libsvm", "1 " + " ".join(reversed(line(full, base, "").split()))
    yield "explicit zeros", "text/libsvm", line([0.0, 0.0, 0.0, 0.0], base, "1")
    yield "three of the other base", "text/libsvm", line(full[:3], 1 - base, "1")
    yield "all of the other base", "text/libsvm", line(full, 1 - base, "1")
    yield "index 0", "text/libsvm", "1 0:1.5 2:-0.5"
    yield "one too many", "text/libsvm", line(full, base, "1") + " %d:1" % width
    yield "two too many", "text/libsvm", line(full, base, "1") + " %d:1" % (width + 1)
    for name, cells in (
        ("as many", width),
        ("one fewer", width - 1),
        ("one more", width + 1),
        ("two fewer", width - 2),
    ):
        values = [0.25, -1.5, 0.75, 2.0, 0.5, -0.75][:cells]
        yield name, "text/csv", ",".join("%g" % value for value in values)


def outcome(call):
    """The scores as the shortest decimals of float32, or None for an error."""
    try:
        scores = np.asarray(call())
    except Exception:
        return None
    return [[float(str(value)) for value in row] for row in scores.reshape(len(scores), -1).astype(np.float32)]


def handle(booster):
    return base64.b64encode(booster).decode()


def main(source, target):
    encoder, serve_utils = container(source)
    draw = random.Random(7)
    facts = []
    data = rows(draw)
    folder = tempfile.mkdtemp()
    for objective, kind in OBJECTIVES.items():
        for booster_kind in ("gbtree", "gblinear", "dart"):
            if booster_kind == "dart" and xgboost.__version__ < "1":
                continue  # predict of 0.90 leaves trees out at random
            if booster_kind != "gbtree" and objective not in ("reg:linear", "binary:logistic", "multi:softprob"):
                continue
            for base in (0, 1):
                text = "\n".join(line(row, base, "%g" % label(kind, draw, row)) for row in data) + "\n"
                path = os.path.join(folder, "data.txt")
                with open(path, "w") as file:
                    file.write(text)
                suffix = "?format=libsvm" if "format=libsvm" in open(encoder.__file__).read() else ""
                matrix = xgboost.DMatrix(path + suffix)
                if objective.startswith("rank:"):
                    matrix.set_group([ROWS // 2, ROWS - ROWS // 2])
                parameters = {
                    "objective": objective, "booster": booster_kind, "max_depth": 2, "eta": 0.5, "nthread": 1,
                    "seed": 1,
                }  # fmt: skip
                if not base:
                    parameters["base_score"] = 0.3 if kind in ("unit", "binary") else 0.6
                parameters.update(EXTRA.get(objective, {}))
                if booster_kind == "gblinear":
                    del parameters["max_depth"]
                    parameters["updater"] = "coord_descent"
                if booster_kind == "dart":
                    parameters["rate_drop"] = 0.5
                try:
                    if objective == "survival:aft":
                        for bound in ("label_lower_bound", "label_upper_bound"):
                            matrix.set_float_info(bound, matrix.get_label())
                    trained = xgboost.train(parameters, matrix, 2)
                except xgboost.core.XGBoostError as error:
                    print(objective, booster_kind, str(error).splitlines()[0][:150], file=sys.stderr)
                    continue
                forms = {"saved": os.path.join(folder, "saved"), "pickled": os.path.join(folder, "pickled")}
                trained.save_model(forms["saved"])
                with open(forms["pickled"], "wb") as file:
                    pickle.dump(trained, file, protocol=4)
                if xgboost.__version__ >= "1":
                    forms["json"] = os.path.join(folder, "model.json")
                    trained.save_model(forms["json"])
                fact = {
                    "objective": objective, "booster": booster_kind, "base": base,
                    "files": {form: handle(open(path, "rb").read()) for form, path in forms.items()}, "outcomes": {},
                }  # fmt: skip
                fact["columns"] = matrix.num_col()
                for form, path in forms.items():
                    where = tempfile.mkdtemp()
                    os.link(path, os.path.join(where, "model.json" if form == "json" else "xgboost-model"))
                    found = serve_utils.get_loaded_booster(where)
                    model, form_found = found
                    for name, kind_of, body in bodies(base):
                        key = "%s, %s" % (form, name)

                        def built_in(body=body, kind_of=kind_of):
                            read, content = serve_utils.parse_content_data(body.encode(), kind_of)
                            return serve_utils.predict(model, form_found, read, content)

                        fact["outcomes"][key] = outcome(built_in)
                        if kind_of == "text/libsvm" and name != "without labels" and form == "saved":

                            def script(body=body):
                                read = encoder.decode((body + "\n").encode(), "text/libsvm")
                                return model.predict(read, validate_features=False)

                            fact["outcomes"]["script, " + key] = outcome(script)
                facts.append(fact)
    with open(target, "w") as file:
        json.dump({"xgboost": xgboost.__version__, "facts": facts}, file)
    print(xgboost.__version__, len(facts), "models", sum(len(each["outcomes"]) for each in facts), "outcomes")


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main(*sys.argv[1:])
