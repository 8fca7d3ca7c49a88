"""Lambda's API: moto keeps the functions; Invoke runs their code on this machine instead of in an image of Lambda's."""

import base64
import json
import threading
from typing import Any, ClassVar, Protocol
from urllib.parse import unquote

from moto.awslambda.responses import LambdaResponse
from moto.core.common_types import TYPE_RESPONSE

from local_test.pipelines.function import LOG_TAIL, FunctionFailed, Result

LARGEST = 6 << 20  # bytes of an event or of a result: docs.aws.amazon.com/lambda/latest/dg/gettingstarted-limits.html


class PlatformWithFunctions(Protocol):
    """The part of the emulator that this API uses."""

    def run_function(self, function: Any, event: str, account: str, region: str) -> Result:
        """Runs the code of moto's function, which acts as its role. Raises FunctionFailed if it cannot be run."""
        ...


class FunctionsApi(LambdaResponse):
    """One request."""

    emulator: ClassVar[Any]

    def invoke(self) -> TYPE_RESPONSE:
        function = self.backend.get_function(unquote(self.path.rsplit("/", 2)[-2]), self._get_param("qualifier"))
        body = self.body if isinstance(self.body, str) else self.body.decode()
        event, kind = body or "{}", self.headers.get("X-Amz-Invocation-Type", "RequestResponse")
        if refused := _refusal(function, event):
            return refused
        if kind == "DryRun":
            return 204, {"status": "204"}, ""
        if kind == "Event":
            threading.Thread(target=self._run, args=(function, event), daemon=True).start()
            return 202, {"status": "202"}, ""
        try:
            result = self._run(function, event)
        except FunctionFailed as error:
            return _error(500, "ServiceException", str(error))
        if len(result.payload.encode()) > LARGEST:
            said = f"Response payload size exceeded maximum allowed payload size ({LARGEST} bytes)."
            result = Result(
                json.dumps({"errorMessage": said, "errorType": "Function.ResponseSizeTooLarge"}), True, result.log
            )
        headers = {"status": "200", "content-type": "application/json", "X-Amz-Executed-Version": "$LATEST"}
        if result.failed:
            headers["X-Amz-Function-Error"] = "Unhandled"
        if self.headers.get("X-Amz-Log-Type") == "Tail":
            headers["X-Amz-Log-Result"] = base64.b64encode(result.log[-LOG_TAIL:].encode()).decode()
        return 200, headers, result.payload

    def create_event_source_mapping(self) -> TYPE_RESPONSE:
        """Refused: nothing here reads a queue for a function, and moto would answer that it does."""
        source = self.json_body.get("EventSourceArn", "")
        said = (
            f"An event source mapping of {source} is not supported by this emulator: invoke the function, or use a "
            "rule of EventBridge."
        )
        return _error(400, "InvalidParameterValueException", said)

    def _run(self, function: Any, event: str) -> Result:
        platform: PlatformWithFunctions = self.emulator
        return platform.run_function(function, event, self.current_account, self.region)


def _refusal(function: Any, event: str) -> TYPE_RESPONSE | None:
    """The error for a function or an event that cannot be run here."""
    if function.package_type != "Zip" or not str(function.run_time).startswith("python"):
        what = (
            f"PackageType {function.package_type}" if function.package_type != "Zip" else f"Runtime {function.run_time}"
        )
        said = (
            f"{what} of function {function.function_name} is not supported by this emulator: use a zip of Python code."
        )
        return _error(502, "InvalidRuntimeException", said)
    try:
        json.loads(event)
    except ValueError as error:
        return _error(400, "InvalidRequestContentException", f"Could not parse request body into json: {error}")
    if len(event.encode()) > LARGEST:
        return _error(413, "RequestTooLargeException", f"Request must be smaller than {LARGEST} bytes.")
    return None


def _error(status: int, code: str, message: str) -> TYPE_RESPONSE:
    return status, {"status": str(status), "x-amzn-errortype": code}, json.dumps({"Type": "User", "Message": message})
