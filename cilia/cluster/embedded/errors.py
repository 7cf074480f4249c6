"""API errors as ``Status`` objects, with the sentences ``kubectl`` users know.

Source: the API conventions, "Response Status Kind"
(https://github.com/kubernetes/community/blob/master/contributors/devel/sig-architecture/api-conventions.md).
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

_REASONS: Final = {
    400: "BadRequest",
    401: "Unauthorized",
    403: "Forbidden",
    404: "NotFound",
    405: "MethodNotAllowed",
    406: "NotAcceptable",
    409: "Conflict",
    410: "Expired",
    413: "RequestEntityTooLarge",
    415: "UnsupportedMediaType",
    422: "Invalid",
    429: "TooManyRequests",
    500: "InternalError",
    503: "ServiceUnavailable",
    504: "Timeout",
    507: "InsufficientStorage",
}


class ApiError(Exception):
    """A request that is answered with a ``Status`` of failure."""

    def __init__(
        self, code: int, message: str, *, reason: str = "", details: dict[str, Any] | None = None
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.reason = reason or _REASONS.get(code, "Unknown")
        self.details = details

    def status(self) -> dict[str, Any]:
        """The ``Status`` object to send."""
        body: dict[str, Any] = {
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": self.message,
            "reason": self.reason,
        }
        if self.details:
            body["details"] = self.details
        body["code"] = self.code
        return body


class FieldError(msgspec.Struct, frozen=True):
    """One fault of one field. ``kind`` is a cause such as ``FieldValueRequired``."""

    kind: str
    path: str
    text: str

    def __str__(self) -> str:
        return f"{self.path}: {self.text}" if self.path else self.text


def required(path: str, text: str = "") -> FieldError:
    """A field that must be there is not."""
    return FieldError("FieldValueRequired", path, "Required value" + (f": {text}" if text else ""))


def invalid(path: str, value: object, text: str) -> FieldError:
    """A field has a value it must not have."""
    return FieldError("FieldValueInvalid", path, f"Invalid value: {show(value)}: {text}")


def unsupported(path: str, value: object, allowed: list[Any]) -> FieldError:
    """A field has a value outside its enumeration."""
    values = ", ".join(show(choice) for choice in allowed)
    return FieldError(
        "FieldValueNotSupported", path, f"Unsupported value: {show(value)}: supported values: {values}"
    )


def show(value: object) -> str:
    """A value as it stands in messages: JSON, cut to a readable length."""
    text = msgspec.json.encode(value).decode()
    return text if len(text) <= 200 else text[:200] + "..."


def qualified(plural: str, group: str) -> str:
    """``pods`` or ``leases.coordination.k8s.io``."""
    return f"{plural}.{group}" if group else plural


def _details(plural: str, group: str, name: str, kind: str = "") -> dict[str, Any]:
    details = {"name": name, "group": group, "kind": kind or plural}
    return {key: value for key, value in details.items() if value}


def not_found(plural: str, group: str, name: str) -> ApiError:
    """No such object."""
    text = f'{qualified(plural, group)} "{name}" not found'
    return ApiError(404, text, details=_details(plural, group, name))


def already_exists(plural: str, group: str, name: str) -> ApiError:
    """An object of that name is there."""
    text = f'{qualified(plural, group)} "{name}" already exists'
    return ApiError(409, text, reason="AlreadyExists", details=_details(plural, group, name))


def conflict(plural: str, group: str, name: str, why: str = "") -> ApiError:
    """An optimistic write lost its race."""
    why = why or (
        "the object has been modified; please apply your changes to the latest version and try again"
    )
    text = f'Operation cannot be fulfilled on {qualified(plural, group)} "{name}": {why}'
    return ApiError(409, text, details=_details(plural, group, name))


def unprocessable(kind: str, group: str, name: str, faults: list[FieldError]) -> ApiError:
    """A well-formed object that breaks its rules; every fault is a cause."""
    listed = str(faults[0]) if len(faults) == 1 else "[" + ", ".join(map(str, faults)) + "]"
    details = _details("", group, name, kind)
    details["causes"] = [{"reason": f.kind, "message": f.text, "field": f.path} for f in faults]
    return ApiError(422, f'{qualified(kind, group)} "{name}" is invalid: {listed}', details=details)


def expired(text: str) -> ApiError:
    """History that is no longer kept: the client lists again."""
    return ApiError(410, text)
