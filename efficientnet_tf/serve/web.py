"""What is served beside the API: the page at `/`, health, readiness and metrics.

/                                   page that tries the model on a picture
/healthz                            200 while the process answers
/readyz                             200 while a version is served and the server does not stop
/monitoring/prometheus/metrics      TensorFlow Serving's path
"""

from collections.abc import Callable
from pathlib import Path

from efficientnet_tf.serve import json_tensor, rest
from efficientnet_tf.serve.http_messages import Request, Response
from efficientnet_tf.serve.metrics import CONTENT_TYPE, Metrics
from efficientnet_tf.serve.service import Service

METRICS = "/monitoring/prometheus/metrics"
_PAGE = {
    "/": ("page.html", "text/html; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
}
# Nothing from elsewhere, nothing inline, and the page in no other's frame.
_SECURITY = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self';"
        " img-src 'self' data: blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


class Site:
    """Answers every path of the server."""

    def __init__(self, service: Service, metrics: Metrics):
        """Reads the page's files.

        Args:
            service: behind /v1/.
            metrics: behind /monitoring/prometheus/metrics.
        """
        self._service = service
        self._metrics = metrics
        self._stopping = False
        folder = Path(__file__).parent
        self._page = {
            path: Response(200, (folder / file).read_bytes(), content_type, _SECURITY)
            for path, (file, content_type) in _PAGE.items()
        }
        self._quick: dict[str, Callable[[], Response]] = {
            "/healthz": lambda: Response(200, b'{"status": "ok"}'),
            "/readyz": self._ready,
            METRICS: lambda: Response(200, metrics.text().encode("utf-8"), CONTENT_TYPE),
        }

    def stopping(self) -> None:
        """Makes the server not ready, so that no more is sent to it."""
        self._stopping = True

    def quick(self, request: Request) -> Response | None:
        """Answers what takes no time; None for the API."""
        if request.path[:4].lower() == "/v1/":
            return None
        found = self._quick.get(request.path)
        response = found() if found else self._page.get(request.path)
        if response is None:
            return Response(404, json_tensor.write_error("Not found"))
        if request.method not in ("GET", "HEAD"):
            message = json_tensor.write_error(f"{request.path} is read by GET")
            return Response(405, message, headers={"Allow": "GET, HEAD"})
        return response

    def handle(self, request: Request) -> Response:
        """Answers a request to the API."""
        return rest.answer(self._service, request)

    def _ready(self) -> Response:
        if self._stopping:
            return Response(503, b'{"status": "stopping"}')
        if not self._service.ready():
            return Response(503, b'{"status": "no version is available"}')
        return Response(200, b'{"status": "ready"}')
