"""`python -m serve [VERB]`: `serve` (what the platform runs, and the default) and the parts it starts."""

import os
import socket
import sys
from dataclasses import replace
from pathlib import Path

from serve import log, settings
from serve.settings import BadSetting

USAGE = """usage: python -m serve [serve | train | conf | settings | convert SOURCE TARGET]
  serve      start the server (the default)
  train      train an XGBoost model, as a SageMaker training job
  conf       print nginx.conf as it would be
  settings   print every setting with its value and source
  convert    write an XGBoost pickle, or a file of before XGBoost 3.1, as TARGET.ubj;
             what pickle or joblib wrote of scikit-learn as TARGET.skops"""


def main(arguments: list[str]) -> int:
    verb, *rest = arguments or ["serve"]
    if verb == "convert":  # a tool, which no setting concerns
        from serve.convert import command

        return command.run(rest)
    try:
        chosen = settings.read()
    except BadSetting as error:
        print(f"serve: {error}", file=sys.stderr)
        if verb == "train":
            from serve.train import job

            job.write(settings.ml_root(), str(error))
        return 2
    log.start("launcher" if verb == "serve" else verb, chosen.log_level)
    # Each part imports only what it needs: the web tier no framework, the launcher next to nothing.
    if verb == "serve":
        from serve import launcher

        try:
            return launcher.run(chosen)
        except (BadSetting, FileNotFoundError) as error:
            print(f"serve: {error}", file=sys.stderr)
            return 2
    if verb == "train":
        from serve.train import job

        return job.run(chosen)
    if verb == "training":
        from serve.train import booster

        return booster.run(chosen)
    if verb == "host":
        from serve.host import server

        return server.run(chosen)
    if verb == "forkserver":
        from serve.host import forkserver

        channel, *modules = rest
        forkserver.run(socket.socket(fileno=int(channel)), modules, chosen)
        return 0
    if verb == "runner":
        from serve.runner import main as runner

        order, listener, control = map(int, rest)
        runner.begin(order, listener, control, chosen)
        return 0
    if verb == "conf":
        from serve import nginx
        from serve.catalog import catalog

        run_dir = chosen.run_dir or Path(os.environ.get("TMPDIR", "/tmp"))
        print(
            nginx.rendered(
                replace(chosen, run_dir=run_dir), catalog.scan(chosen.model_dir, chosen.hf_task, chosen.program)
            )
        )
        return 0
    if verb == "settings":
        for name, source in chosen.sources.items():
            print(f"{name:<16} {getattr(chosen, name)!s:<28} {source}")
        return 0
    print(USAGE, file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
