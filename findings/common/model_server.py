"""A model server on loopback that answers what a finding tells it to, and remembers what it was asked."""

import http.server
import json
import threading


def serve(answer):
    """
    Start a server in the background; it ends with the process.

    Args:
        answer: Called with the path, the request's JSON and the number of requests so far. Returns the status
            and the JSON of the answer; a list instead is sent as a stream of events.

    Returns:
        The server's URL, and the list of requests: path, JSON and headers (names in lower case) of each.
    """
    requests = []

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *words):
            pass

        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            requests.append((self.path, body, {name.lower(): text for name, text in self.headers.items()}))
            status, content = answer(self.path, body, len(requests))
            events = isinstance(content, list)
            if events:
                lines = [event if isinstance(event, str) else json.dumps(event) for event in content]
                data = "".join(f"data: {line}\n\n" for line in lines).encode()
            else:
                data = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("content-type", "text/event-stream" if events else "application/json")
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return f"http://127.0.0.1:{server.server_port}", requests


def chat(text, usage=None, tool=None):
    """Make an answer of the Chat Completions API: text, or a call of a tool given as (name, arguments)."""
    message = {"role": "assistant", "content": text}
    if tool:
        function = {"name": tool[0], "arguments": tool[1]}
        message["tool_calls"] = [{"id": "call_1", "type": "function", "function": function}]
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1700000000,
        "model": "gpt-4o-2024-08-06",
        "choices": [{"index": 0, "message": message, "finish_reason": "tool_calls" if tool else "stop"}],
        "usage": usage or {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110},
    }


def chunk(text, usage=None, finish=None):
    """Make a chunk of a Chat Completions stream; without text it has no choice, only the usage."""
    delta = {"role": "assistant", "content": text}
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion.chunk",
        "created": 1700000000,
        "model": "gpt-4o-2024-08-06",
        "choices": [] if text is None else [{"index": 0, "delta": delta, "finish_reason": finish}],
        "usage": usage,
    }
