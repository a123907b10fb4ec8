"""What servers of OpenAI and Anthropic answer, for one on loopback; with bodies of their references."""

from __future__ import annotations

import json
from typing import Any

from support import Reply, Request

ANSWER = "It rains in Oslo."

OPENAI_USAGE = {
    "prompt_tokens": 19,
    "completion_tokens": 10,
    "total_tokens": 29,
    "prompt_tokens_details": {"cached_tokens": 8, "audio_tokens": 0},
    "completion_tokens_details": {"reasoning_tokens": 4, "audio_tokens": 0},
}


def answer(request: Request) -> Reply:
    """Answer one request; a path that is not known gets 404."""
    if request.path == "/v1/traces":
        return Reply()
    asked = request.json()
    if request.path.endswith("/chat/completions"):
        return _events(_chunks(asked)) if asked.get("stream") else _json(_completion(asked))
    if request.path.endswith("/responses"):
        return _json(_response())
    if request.path.endswith("/messages"):
        return _json(_message())
    return Reply(404, b'{"error": {"message": "no such path"}}')


def _json(body: dict[str, Any]) -> Reply:
    return Reply(body=json.dumps(body).encode(), headers={"Content-Type": "application/json"})


def _events(bodies: list[dict[str, Any]]) -> Reply:
    lines = [f"data: {json.dumps(body)}\n\n" for body in bodies]
    return Reply(
        body="".join([*lines, "data: [DONE]\n\n"]).encode(), headers={"Content-Type": "text/event-stream"}
    )


def _completion(asked: dict[str, Any]) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": ANSWER, "refusal": None, "annotations": []}
    if asked.get("tools"):
        call = {"name": "get_weather", "arguments": '{"city": "Oslo"}'}
        message["content"] = None
        message["tool_calls"] = [{"id": "call_abc123", "type": "function", "function": call}]
    reason = "tool_calls" if asked.get("tools") else "stop"
    return {
        "id": "chatcmpl-B9MBs8CjcvOU2jLn4n570S5qMJKcT",
        "object": "chat.completion",
        "created": 1741569952,
        "model": "gpt-4o-2024-08-06",
        "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": reason}],
        "usage": OPENAI_USAGE,
        "service_tier": "default",
    }


def _chunks(asked: dict[str, Any]) -> list[dict[str, Any]]:
    """The pieces of a stream: the role, the words, the end, and the usage if it was asked for."""
    deltas = [{"role": "assistant", "content": ""}, {"content": "It rains"}, {"content": " in Oslo."}, {}]
    common = {
        "id": "chatcmpl-123",
        "object": "chat.completion.chunk",
        "created": 1694268190,
        "model": "gpt-4o-2024-08-06",
    }
    found = [
        {**common, "choices": [{"index": 0, "delta": delta, "finish_reason": None if delta else "stop"}]}
        for delta in deltas
    ]
    if (asked.get("stream_options") or {}).get("include_usage"):
        found.append({**common, "choices": [], "usage": OPENAI_USAGE})
    return found


def _response() -> dict[str, Any]:
    content = [{"type": "output_text", "text": ANSWER, "annotations": []}]
    return {
        "id": "resp_67ccd2bed1ec8190b14f964abc0542670bb6a6b452d3795b",
        "object": "response",
        "created_at": 1741476542,
        "status": "completed",
        "model": "gpt-4o-2024-08-06",
        "output": [
            {"type": "message", "id": "msg_1", "status": "completed", "role": "assistant", "content": content}
        ],
        "parallel_tool_calls": True,
        "tool_choice": "auto",
        "tools": [],
        "usage": {
            "input_tokens": 19,
            "input_tokens_details": {"cached_tokens": 8},
            "output_tokens": 10,
            "output_tokens_details": {"reasoning_tokens": 4},
            "total_tokens": 29,
        },
    }


def _message() -> dict[str, Any]:
    return {
        "id": "msg_013Zva2CMHLNnjNjJXeoW3zp",
        "type": "message",
        "role": "assistant",
        "model": "claude-sonnet-5",
        "content": [{"type": "text", "text": ANSWER}],
        "stop_reason": "end_turn",
        "stop_sequence": None,
        "usage": {
            "input_tokens": 11,
            "cache_creation_input_tokens": 5,
            "cache_read_input_tokens": 8,
            "cache_creation": {"ephemeral_5m_input_tokens": 3, "ephemeral_1h_input_tokens": 2},
            "output_tokens": 10,
            "service_tier": "standard",
        },
    }


def settings(url: str) -> dict[str, str]:
    """Return the variables that make the clients of both ask this server."""
    return {
        "OPENAI_BASE_URL": f"{url}/v1",
        "OPENAI_API_KEY": "sk-none",
        "ANTHROPIC_BASE_URL": url,
        "ANTHROPIC_API_KEY": "none",
    }
