"""A real process with a life like a service's: listens after a while, drains on SIGTERM, keeps a journal.

python tiny_service.py NAME PORT JOURNAL [START_SECONDS [DRAIN_SECONDS]]
"""

import json
import os
import signal
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer


def main() -> None:
    name, port, journal = sys.argv[1], int(sys.argv[2]), sys.argv[3]
    starting, draining = (float(text) for text in [*sys.argv[4:6], "0", "0"][:2])

    def note(what: str) -> None:
        with open(journal, "a") as file:
            file.write(f"{time.monotonic():.3f} {name} {what} {os.getpid()}\n")

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            details = {"active": f"{name}@1", "versions": {f"{name}@2": {"state": "loading"}}}
            self.wfile.write(json.dumps({"ready": True, "reason": "", "details": details}).encode())

        def log_message(self, *_: object) -> None:
            pass

    note("started")
    print(f"{name} begins", flush=True)
    time.sleep(starting)
    server = HTTPServer(("127.0.0.1", port), Handler)

    def stop(*_: object) -> None:
        note("stopping")
        time.sleep(draining)
        note("stopped")
        threading.Thread(target=server.shutdown).start()

    signal.signal(signal.SIGTERM, stop)
    note("ready")
    server.serve_forever()


if __name__ == "__main__":
    main()
