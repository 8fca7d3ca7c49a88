"""python -m deploy: the same as the console script sagemaker-deploy."""

import sys

from deploy.cli import main

if __name__ == "__main__":
    sys.exit(main())
