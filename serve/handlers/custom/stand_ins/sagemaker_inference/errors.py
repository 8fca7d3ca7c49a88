"""Errors of model code, with the status of the reply."""


class BaseInferenceToolkitError(Exception):
    def __init__(self, status_code: int, message: str, phrase: str = "") -> None:
        super().__init__(message)
        self.status_code = status_code
        self.message = message
        self.phrase = phrase


class GenericInferenceToolkitError(BaseInferenceToolkitError):
    def __init__(self, status_code: int, message: str | None = None, phrase: str | None = None) -> None:
        super().__init__(status_code, message or "Invalid Request", phrase or message or "")


class UnsupportedFormatError(BaseInferenceToolkitError):
    def __init__(self, content_type: str, **_: object) -> None:
        super().__init__(415, f"content type {content_type!r} is not supported by this model")
        self.content_type = content_type


class ClientError(BaseInferenceToolkitError):
    def __init__(self, message: str = "") -> None:
        super().__init__(400, message)
