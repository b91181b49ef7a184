"""The parts of a Chat Completions request, in the words of the Responses API. Pure functions."""

from typing import Any, Literal, assert_never

from msgspec import UNSET, Raw

from codexd import errors
from codexd.protocol import chat
from codexd.protocol.responses import (
    FunctionCall,
    FunctionCallOutput,
    FunctionTool,
    InputFile,
    InputImage,
    InputItem,
    InputPart,
    InputText,
    Message,
    NamedTool,
    OutputText,
    given,
)


def leading_instructions(messages: list[chat.Message]) -> tuple[str, list[chat.Message]]:
    """The system texts at the start, to be the instructions, and the messages after them; or none, and all of them."""
    texts: list[str] = []
    for message in messages:
        if not isinstance(message, chat.SystemMessage | chat.DeveloperMessage):
            break
        texts.append(_all_text(message.content))
    rest = messages[len(texts) :]
    text = "\n\n".join(filter(None, texts))
    # The backend wants something in the input: with nothing after them the texts stay where they are.
    return (text, rest) if text and rest else ("", messages)


def _all_text(content: chat.Content) -> str:
    if isinstance(content, str):
        return content
    return "\n".join(part.text for part in content or () if isinstance(part, chat.TextPart))


def message_items(message: chat.Message, where: str) -> list[InputItem]:
    match message:
        case chat.SystemMessage() | chat.DeveloperMessage():
            parts = _parts(message.content, where)
            return [Message(role="developer", content=parts)] if parts else []
        case chat.UserMessage():
            parts = _parts(message.content, where)
            return [Message(role="user", content=parts)] if parts else []
        case chat.AssistantMessage():
            return _assistant_items(message)
        case chat.ToolMessage():
            content = message.content
            output = content if isinstance(content, str) else _parts(content, where)
            return [FunctionCallOutput(call_id=message.tool_call_id, output=output or "")]
        case _:  # pragma: no cover
            assert_never(message)


def _assistant_items(message: chat.AssistantMessage) -> list[InputItem]:
    text = _all_text(message.content)
    if not isinstance(message.content, str):
        text += "\n".join(part.refusal for part in message.content or () if isinstance(part, chat.RefusalPart))
    text = text or message.refusal or ""
    items: list[InputItem] = [Message(role="assistant", content=[OutputText(text=text)])] if text else []
    items += [
        FunctionCall(call_id=call.id, name=call.function.name, arguments=call.function.arguments)
        for call in message.tool_calls or ()
    ]
    return items


def _parts(content: chat.Content, where: str) -> list[InputPart]:
    if isinstance(content, str):
        return [InputText(text=content)]
    return [_part(part, f"{where}.content[{index}]") for index, part in enumerate(content or ())]


def _part(part: chat.Part, where: str) -> InputPart:
    match part:
        case chat.TextPart(text=text) | chat.RefusalPart(refusal=text):
            return InputText(text=text)
        case chat.ImagePart(image_url=image):
            if isinstance(image, str):
                return InputImage(image_url=image)
            return InputImage(image_url=image.url, detail=image.detail or UNSET)
        case chat.FilePart(file=file):
            if file.file_data is None:
                raise errors.unsupported(
                    where,
                    "Files are sent with the request, as file.file_data (a data URL): there is no files API here.",
                )
            return InputFile(filename=file.filename or "file", file_data=file.file_data)
        case chat.AudioPart():
            raise errors.unsupported(where, "Audio input is not supported: the backend takes text, images and files.")
        case _:  # pragma: no cover
            assert_never(part)


def function_tool(function: chat.Function) -> FunctionTool:
    return FunctionTool(
        name=function.name,
        description=function.description if function.description is not None else UNSET,
        strict=function.strict or False,
        parameters=function.parameters if given(function.parameters) else Raw(b'{"type":"object","properties":{}}'),
    )


def tool_choice(
    asked: Literal["none", "auto", "required"] | chat.NamedToolChoice | None,
) -> Literal["none", "auto", "required"] | NamedTool:
    if isinstance(asked, chat.NamedToolChoice):
        return NamedTool(name=asked.function.name)
    return asked or "auto"


def text_format(asked: chat.ChatRequest) -> Any:
    match asked.response_format:
        case chat.FormatJsonSchema(json_schema=schema):
            wanted: dict[str, Any] = {"type": "json_schema", "name": schema.name}
            given = {"description": schema.description, "schema": schema.schema, "strict": schema.strict}
            return wanted | {key: value for key, value in given.items() if value is not None and value is not UNSET}
        case chat.FormatJsonObject():
            return {"type": "json_object"}
        case _:
            return UNSET
