"""Serve the built book: python tools/serve.py FOLDER PORT."""

import functools
import http.server
import sys


class Quiet(http.server.SimpleHTTPRequestHandler):
    """A file handler that does not log each request."""

    def log_message(self, *arguments):
        pass


def main(folder, port):
    handler = functools.partial(Quiet, directory=folder)
    try:
        server = http.server.ThreadingHTTPServer(("127.0.0.1", int(port)),
                                                 handler)
    except (OSError, OverflowError, ValueError) as error:
        sys.exit(f"PORT={port} cannot be served on: {error}")
    print(f"The book is at http://127.0.0.1:{server.server_port}/"
          "  (Ctrl-C stops)", flush=True)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        print()


if __name__ == "__main__":
    main(*sys.argv[1:])
