"""The mean of all numbers that a session has sent: an example of a stateful session."""

import json
import secrets
import time

SESSION, NEW, CLOSED = (f"X-Amzn-SageMaker-{name}" for name in ("Session-Id", "New-Session-Id", "Closed-Session-Id"))
SECONDS = 1200  # that a session lasts


def model_fn(model_dir):
    """The sessions: id -> when it ends, and its numbers. One process answers all requests, one at a time."""
    return {}


def transform_fn(sessions, body, content_type, accept, context):
    for old in [each for each, (end, _) in sessions.items() if end < time.time()]:
        del sessions[old]
    session = context.get_request_header(0, SESSION)
    if session == "NEW_SESSION":
        session, end = secrets.token_hex(16), time.time() + SECONDS
        sessions[session] = end, []
        expires = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(end))
        context.set_response_header(0, NEW, f"{session}; Expires={expires}")
    if session not in sessions:
        context.set_response_status(400, "unknown session")
        return json.dumps({"error": f"session {session} is unknown or has expired: send NEW_SESSION"})
    request, (_, numbers) = json.loads(body), sessions[session]
    numbers += request.get("numbers", [])
    if request.get("requestType") == "CLOSE":
        del sessions[session]
        context.set_response_header(0, CLOSED, session)
    return json.dumps({"count": len(numbers), "mean": sum(numbers) / len(numbers) if numbers else None})
