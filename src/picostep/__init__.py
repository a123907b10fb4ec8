"""picostep records every LLM step of an inference server: https://pypi.org/project/picostep/"""

from picostep._api import (
    Run,
    Step,
    ToolCall,
    run,
    send_run,
    send_step,
    send_tool_call,
    step,
    submit_feedback,
    tool_call,
)
from picostep.api import configure, current_traceparent, flush, shutdown, stats
from picostep.errors import (
    ArgumentError,
    ArgumentTypeError,
    ConfigError,
    EndedError,
    MissingFieldError,
    PicostepError,
)
from picostep.settings.urls import get_api_key, get_url

__version__ = "0.1.0"

__all__ = [
    "ArgumentError",
    "ArgumentTypeError",
    "ConfigError",
    "EndedError",
    "MissingFieldError",
    "PicostepError",
    "Run",
    "Step",
    "ToolCall",
    "configure",
    "current_traceparent",
    "flush",
    "get_api_key",
    "get_url",
    "run",
    "send_run",
    "send_step",
    "send_tool_call",
    "shutdown",
    "stats",
    "step",
    "submit_feedback",
    "tool_call",
]
