"""How an answer ends, in Chat Completions' words: its usage, and its failure."""

from codexd.errors import ApiError
from codexd.protocol import failure
from codexd.protocol.chat import CompletionTokensDetails, CompletionUsage, PromptTokensDetails
from codexd.protocol.cut import estimate
from codexd.protocol.responses import ErrorEvent, Event, Failed, ResponseError, Usage


def estimated(tokens_in: int, spent: int) -> Usage:
    """The usage of an answer that was cut after so many bytes, which the backend never told."""
    tokens_out = estimate(spent)
    return Usage(input_tokens=tokens_in, output_tokens=tokens_out, total_tokens=tokens_in + tokens_out)


def failed(event: Event) -> ApiError:
    """The error that a terminal event without success stands for: failed, error or cancelled."""
    if isinstance(event, Failed):
        said = event.response.error or ResponseError()
    elif isinstance(event, ErrorEvent):
        said = event.error or ResponseError(event.code, event.message)
    else:
        said = ResponseError("upstream_cancelled", "The ChatGPT backend cancelled the answer.")
    # usage_limit_reached and its like were seen as a type, without a code.
    code = said.code if said.code is not None else said.type
    error = failure.in_stream(None if code is None else str(code), said.message)
    if error.retry_after is None and said.resets_in_seconds is not None:
        error.retry_after = failure.whole_seconds(said.resets_in_seconds)
    return error


def chat_usage(usage: Usage) -> CompletionUsage:
    """Token counts in Chat Completions' words. Cached and reasoning tokens are part of the totals."""
    tokens_in, tokens_out = usage.input_tokens or 0, usage.output_tokens or 0
    prompt, completion = usage.input_tokens_details, usage.output_tokens_details
    return CompletionUsage(
        prompt_tokens=tokens_in,
        completion_tokens=tokens_out,
        total_tokens=usage.total_tokens or tokens_in + tokens_out,
        prompt_tokens_details=PromptTokensDetails(cached_tokens=(prompt and prompt.cached_tokens) or 0),
        completion_tokens_details=CompletionTokensDetails(
            reasoning_tokens=(completion and completion.reasoning_tokens) or 0
        ),
    )
