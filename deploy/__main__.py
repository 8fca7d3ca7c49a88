"""python -m deploy: from models and a spec to an endpoint, and back to nothing."""

import sys
from typing import Any


def main(arguments: list[str] | None = None, **options: Any) -> int:
    """The exit code: 0 done or unchanged, 1 failed or rolled back, 2 a spec or a command that cannot be meant."""
    words = sys.argv[1:] if arguments is None else arguments
    try:
        from deploy import verbs  # boto3 takes most of a second to import: long enough for a Ctrl-C

        return verbs.run(words, **options)
    except KeyboardInterrupt:
        print("stopped; what AWS has begun goes on: the same command takes it up again", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
