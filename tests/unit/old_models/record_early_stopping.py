"""Records the answers of AWS's XGBoost container with models whose training was stopped early and kept all rounds.

It runs as record_libsvm.py, which holds the data and the container's code paths; libsvm.json.xz has its results too.
"""

import json
import os
import pickle
import random
import sys
import tempfile

import record_libsvm as recorder
import xgboost


def write(path, data, labels):
    with open(path, "w") as file:
        file.writelines(recorder.line(row, 1, "%g" % label) + "\n" for row, label in zip(data, labels))


def main(source, target):
    encoder, serve_utils = recorder.container(source)
    suffix = "?format=libsvm" if "format=libsvm" in open(encoder.__file__).read() else ""
    data = recorder.rows(random.Random(3))
    facts = []
    for objective, kind in (("binary:logistic", "binary"), ("multi:softprob", "class")):
        for booster, parallel in (("gbtree", 1), ("gbtree", 2), ("dart", 1)):
            if booster == "dart" and xgboost.__version__ < "1":
                continue  # predict of 0.90 leaves trees out at random
            folder = tempfile.mkdtemp()
            train, validation = os.path.join(folder, "train"), os.path.join(folder, "validation")
            labels = [recorder.label(kind, None, row) for row in data]
            write(train, data, labels)
            random.Random(5).shuffle(labels)  # the validation gets worse soon
            write(validation, data, labels)
            train, validation = xgboost.DMatrix(train + suffix), xgboost.DMatrix(validation + suffix)
            parameters = {
                "objective": objective, "max_depth": 2, "eta": 0.7, "nthread": 1, "seed": 1, "booster": booster,
                "num_parallel_tree": parallel, "subsample": 1 if parallel == 1 else 0.7,
            }  # fmt: skip
            parameters.update(recorder.EXTRA.get(objective, {}))
            evals = [(train, "train"), (validation, "validation")]
            trained = xgboost.train(parameters, train, 20, evals=evals, early_stopping_rounds=2, verbose_eval=False)
            forms = {"saved": os.path.join(folder, "saved"), "pickled": os.path.join(folder, "pickled")}
            trained.save_model(forms["saved"])
            with open(forms["pickled"], "wb") as file:
                pickle.dump(trained, file, protocol=4)
            if xgboost.__version__ >= "1":
                forms["json"] = os.path.join(folder, "model.json")
                trained.save_model(forms["json"])
            fact = {
                "objective": objective, "booster": booster, "parallel": parallel, "base": 1, "columns": 5, "outcomes": {},
                "files": {form: recorder.handle(open(path, "rb").read()) for form, path in forms.items()},
            }  # fmt: skip
            name, content_type, body = next(iter(recorder.bodies(1)))
            for form, path in forms.items():
                where = tempfile.mkdtemp()
                os.link(path, os.path.join(where, "model.json" if form == "json" else "xgboost-model"))
                model, kind_of = serve_utils.get_loaded_booster(where)

                def built_in():
                    read, content = serve_utils.parse_content_data(body.encode(), content_type)
                    return serve_utils.predict(model, kind_of, read, content)

                fact["outcomes"]["%s, %s" % (form, name)] = recorder.outcome(built_in)
            facts.append(fact)
    with open(target, "w") as file:
        json.dump(facts, file)


if __name__ == "__main__":
    main(*sys.argv[1:])
