"""Chats: their messages, and the prompt that the model's own template makes of them."""

from collections.abc import Collection, Sequence
from typing import Any

import msgspec
from transformers import PreTrainedTokenizerBase

from serve.errors import BadRequest
from serve.handlers.generation import openai_fields

# Arguments of apply_chat_template that are not for the template.
RESERVED = {
    *("conversation", "messages", "chat_template", "tokenize", "padding", "truncation", "max_length", "return_tensors"),
    *("return_dict", "return_assistant_tokens_mask", "tokenizer_kwargs", "processor_kwargs"),
}
PLAIN_ROLES = ("user", "assistant")  # of which a template may leave out a part, such as earlier reasoning
# Members of a message that would change the prompt, and what to send in place of them.
_REFUSED_MEMBERS = {
    "function_call": "send tool_calls",
    "audio": "send content",
    "prefix": "set continue_final_message beside messages",
}


class MessagePart(msgspec.Struct, frozen=True):
    type: str
    text: str = ""
    refusal: str = ""


class ToolFunction(msgspec.Struct, frozen=True):
    name: str
    arguments: str | dict[str, Any] = ""  # JSON in OpenAI's API; an object in chats of transformers


class ToolCall(msgspec.Struct, frozen=True):
    function: ToolFunction
    id: str | None = None
    type: str = "function"


class Message(msgspec.Struct, frozen=True, omit_defaults=True):
    role: str
    content: str | list[MessagePart] | None = None
    name: str | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None
    refusal: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    annotations: Any = None  # of OpenAI's own answers; without an effect


class ChatTemplate:
    """The chat template of one model's tokenizer."""

    def __init__(self, model: str, tokenizer: PreTrainedTokenizerBase) -> None:
        self._model = model
        self._tokenizer = tokenizer

    def rendered(self, chat: Sequence[Message], arguments: dict[str, Any]) -> str:
        """A chat as the model's template writes it. `arguments`: further ones of apply_chat_template.

        Raises BadRequest without a template, for messages that it refuses, and for those that it would leave out.
        """
        messages = [_template_message(i, message) for i, message in enumerate(chat)]
        if not self._tokenizer.chat_template:
            raise BadRequest(
                f"model {self._model!r} has no chat template",
                hint="send a prompt to /v1/completions, or put a chat_template.jinja beside the model's tokenizer",
            )
        text = self._render(messages, arguments)
        self._check_traces(messages, arguments)
        return text

    def _render(self, messages: Sequence[dict[str, Any]], arguments: dict[str, Any]) -> str:
        try:
            text = self._tokenizer.apply_chat_template(list(messages), tokenize=False, **arguments)
        except MemoryError:
            raise
        except Exception as error:  # a template can raise any class: it is a program, and the messages are its input
            raise BadRequest(
                f"the model's chat template does not take these messages: {type(error).__name__}: {str(error)[:300]}"
            ) from error
        assert isinstance(text, str)
        return text

    def _check_traces(self, messages: Sequence[dict[str, Any]], arguments: dict[str, Any]) -> None:
        """Raise BadRequest for a message of a tool or of the system, or a call, that leaves no trace in the prompt."""
        marks = [f"mark{i}x{len(messages)}" for i in range(len(messages))]
        marked = [_marked(message, mark) for message, mark in zip(messages, marks, strict=True)]
        if marked == list(messages):
            return
        try:
            text = self._render(marked, arguments)
        except BadRequest:
            return  # a template that takes the messages, and not their marks, reads them
        for i, (message, mark) in enumerate(zip(messages, marks, strict=True)):
            if message["content"] and message["role"] not in PLAIN_ROLES and f"{mark}text" not in text:
                raise BadRequest(
                    f"the model's chat template leaves out messages[{i}], of the role {str(message['role'])[:40]!r}",
                    hint="send its text in a message of the user",
                )
            if message.get("tool_calls") and f"{mark}call" not in text:
                raise BadRequest(
                    f"the model's chat template leaves out the tool_calls of messages[{i}]",
                    hint="write the calls into the content of the message",
                )


def check_members(messages: Sequence[Collection[str]]) -> None:
    """Raise BadRequest for the name of a member that has an effect and is not read."""
    for number, names in enumerate(messages):
        for name in names:
            if name in _REFUSED_MEMBERS:
                raise BadRequest(f"messages[{number}].{name} is not supported", hint=_REFUSED_MEMBERS[name])
            if name not in Message.__struct_fields__:
                openai_fields.unknown(name, Message.__struct_fields__, "messages[].")


def _marked(message: dict[str, Any], mark: str) -> dict[str, Any]:
    """A message with a word in place of its text and of the names of its calls, if it needs a check."""
    marked = dict(message)
    if message["content"] and message["role"] not in PLAIN_ROLES:
        marked["content"] = f"{mark}text"
    if message.get("tool_calls"):
        marked["tool_calls"] = [
            each | {"function": each["function"] | {"name": f"{mark}call"}} for each in message["tool_calls"]
        ]
    return marked


def _template_message(number: int, message: Message) -> dict[str, Any]:
    """A message as chat templates take it: text only, and "system" for OpenAI's newer role "developer"."""
    content = message.content
    if isinstance(content, list):
        other = next((part.type for part in content if part.type not in ("text", "refusal")), None)
        if other is not None:
            raise BadRequest(f"messages has a part of type {other[:40]!r}", hint="this model reads text only")
        content = "\n".join(part.text or part.refusal for part in content)
    rendered: dict[str, Any] = {
        "role": "system" if message.role == "developer" else message.role,
        "content": content or message.refusal or "",
    }
    if message.tool_calls:
        rendered["tool_calls"] = [_template_call(number, call) for call in message.tool_calls]
    if reasoning := message.reasoning or message.reasoning_content:
        rendered["reasoning_content"] = reasoning
    named = {"name": message.name, "tool_call_id": message.tool_call_id}
    return rendered | {name: value for name, value in named.items() if value}


def _template_call(number: int, call: ToolCall) -> dict[str, Any]:
    """A call with its arguments as an object, which templates write in their own form."""
    name, arguments = call.function.name, call.function.arguments
    if isinstance(arguments, str):
        try:
            arguments = msgspec.json.decode(arguments or "{}", type=dict[str, Any])
        except msgspec.DecodeError as error:
            raise BadRequest(
                f"messages[{number}].tool_calls: the arguments of {name[:40]!r} are not a JSON object: {error}",
                hint="send them as they were in the answer",
            ) from error
    function = {"name": name, "arguments": arguments}
    return {"type": "function", "function": function} | ({"id": call.id} if call.id else {})
