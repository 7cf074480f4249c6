"""A web server that says its name and whose address it sees: python3 web.py NAME [PORT]."""

import http.server
import socket
import sys


class Web(http.server.BaseHTTPRequestHandler):
    """One line for everybody."""

    def do_GET(self) -> None:
        client = self.client_address[0].removeprefix("::ffff:")
        self.wfile.write(f"HTTP/1.0 200 OK\r\n\r\n{sys.argv[1]} sees {client}\n".encode())

    def log_message(self, *_: object) -> None:
        pass


class Server(http.server.ThreadingHTTPServer):
    """Of both families."""

    address_family = socket.AF_INET6


Server(("::", int(sys.argv[2]) if len(sys.argv) > 2 else 8080), Web).serve_forever()
