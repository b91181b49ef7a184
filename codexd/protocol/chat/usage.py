"""Token counts in the format of Chat Completions."""

from codexd.protocol.chat.wire import CompletionTokensDetails, CompletionUsage, PromptTokensDetails
from codexd.protocol.codex.events import Usage


def chat_usage(usage: Usage) -> CompletionUsage:
    """Converts token counts. Cached and reasoning tokens are part of the totals."""
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
