"""JSON to a router over HTTP."""

import http.client
import json
from typing import NamedTuple
from urllib.parse import urlsplit

ANSWER_BYTES_MAX = 1 << 20


class Answer(NamedTuple):
    status: int
    body: dict
    retry_after_s: float | None


class Connection:
    """JSON over one kept HTTP/1.1 connection."""

    def __init__(self, url: str, token: str | None, timeout_s: float) -> None:
        parts = urlsplit(url)
        make = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        self._make = lambda: make(parts.hostname, parts.port, timeout=timeout_s)
        self._prefix = parts.path
        self._headers = {"Content-Type": "application/json"}
        if token:
            self._headers["Authorization"] = f"Bearer {token}"
        self._http: http.client.HTTPConnection | None = None

    def post(self, path: str, body: bytes) -> Answer:
        """Raises OSError or HTTPException. A kept connection that the router has closed meanwhile
        is tried once more on a new one: everything we post may come twice."""
        kept = self._http is not None
        try:
            return self._post(path, body)
        except (http.client.BadStatusLine, ConnectionError):
            self.close()
            if not kept:
                raise
            try:
                return self._post(path, body)
            except Exception:
                self.close()
                raise
        except Exception:
            self.close()
            raise

    def _post(self, path: str, body: bytes) -> Answer:
        if self._http is None:
            self._http = self._make()
        self._http.request("POST", self._prefix + path, body=body, headers=self._headers)
        response = self._http.getresponse()
        text = response.read(ANSWER_BYTES_MAX)
        if response.will_close or not response.isclosed():
            self.close()
        try:
            value = json.loads(text) if text else {}
        except ValueError:
            value = {}
        retry_after = None
        try:
            retry_after = min(30.0, max(0.05, float(response.headers.get("Retry-After", ""))))
        except ValueError:
            pass
        return Answer(response.status, value if isinstance(value, dict) else {}, retry_after)

    def close(self) -> None:
        if self._http is not None:
            self._http.close()
            self._http = None
