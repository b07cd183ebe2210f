"""A server with OpenAI's interface whose answers depend on the request alone: `python FILE`.

It prints its port. The tests run it as a process, and so do kills by hand.
"""

import json
import re
import sys
import time
import zlib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

DELAY = float(sys.argv[1]) if len(sys.argv) > 1 else 0.0  # seconds of one answer
AMOUNTS = 60  # different questions


def answer_of(prompt, seed):
    """Returns questions, tests, or solutions of which about every third one passes."""
    if prompt.startswith("List "):
        count = int(prompt.split()[1])
        numbers = [(seed + 7 * i) % AMOUNTS for i in range(count)]
        return "\n".join(f"{i + 1}. Add {n} to a number." for i, n in enumerate(numbers))
    amount = int(re.findall(r"Add (\d+) to", prompt)[-1])
    if prompt.startswith("Write 5 tests"):
        asserts = [f"assert add({i}) == {i + amount}" for i in (1, 2, 30)]
        return "[TESTS]\n" + "\n".join(asserts) + "\n[/TESTS]"
    bodies = [f"return x + {amount}", "return x +", f"return x + {amount} - (x > 9)"]
    return f"[PYTHON]\ndef add(x):\n    {bodies[seed % 3]}\n[/PYTHON]"


class Handler(BaseHTTPRequestHandler):
    """Answers /v1/chat/completions."""

    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        prompt, seed = body["messages"][-1]["content"], body["seed"]
        # Models differ, as the teacher and the student of `rank` do.
        seed += zlib.crc32(body["model"].encode())
        time.sleep(DELAY)
        if seed % 23 == 0:
            self.reply(400, {"error": {"message": "the stand-in refuses this request"}})
            return
        self.reply(200, {"choices": [{"message": {"content": answer_of(prompt, seed)}}]})

    def reply(self, status, value):
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        pass


class Server(ThreadingHTTPServer):
    """Prints nothing about clients that were killed."""

    def handle_error(self, *_):
        pass


if __name__ == "__main__":
    server = Server(("127.0.0.1", 0), Handler)
    print(server.server_port, flush=True)
    server.serve_forever()
