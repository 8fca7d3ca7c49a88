"""get_logger() -> the toolkit's logger, whose lines are in the server's log."""

import logging


def get_logger() -> logging.Logger:
    return logging.getLogger("sagemaker-inference")
