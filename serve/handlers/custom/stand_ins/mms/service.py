"""PredictionException(message, error_code): an error with the status of the reply."""


class PredictionException(Exception):
    def __init__(self, message: str, error_code: int = 500) -> None:
        super().__init__(message)
        self.message = message
        self.error_code = error_code
