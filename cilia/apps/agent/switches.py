"""Live switches of single endpoints: in the table for the brain, in the endpoint's file for a restart."""

from __future__ import annotations

from collections.abc import Mapping

import structlog

from cilia.api.backend import Caller
from cilia.api.types import Setting
from cilia.apps.agent.live import Value, who
from cilia.apps.agent.settings import AgentSettings
from cilia.apps.agent.state import EndpointFiles
from cilia.model.endpoint import HOST_ENDPOINT, Endpoint
from cilia.schema import EndpointOptions, Inputs

log = structlog.get_logger(__name__)


class EndpointSwitches:
    """The writer of `endpoint_options`."""

    def __init__(self, inputs: Inputs, files: EndpointFiles) -> None:
        self._inputs = inputs
        self._files = files
        self._attachments = inputs.attachments.cursor()

    def settings(self, endpoint: Endpoint, node: AgentSettings) -> list[Setting]:
        """What can be changed of an endpoint, what it is now, and by whose word."""
        row = self._inputs.endpoint_options.get(endpoint.id)
        if node.policy_audit_mode:
            source = "node"
        elif row is not None and row.audit is not None:
            source = "live"
        else:
            source = "annotation" if endpoint.audit else "default"
        audit = endpoint.audit or node.policy_audit_mode
        return [Setting(name="policy-audit-mode", value=audit, source=source, option="PolicyAuditMode")]

    def change(self, endpoint: Endpoint, wanted: Mapping[str, Value | None], caller: Caller) -> None:
        """Take up values, None to reset, and say who wanted them. Raises OSError; nothing changed then."""
        audit = wanted["audit"]
        assert audit is None or isinstance(audit, bool)
        self._files.save_audit(endpoint.id, audit)
        if audit is None:
            self._inputs.endpoint_options.delete(endpoint.id)
        else:
            self._inputs.endpoint_options.put(EndpointOptions(endpoint=endpoint.id, audit=audit))
        log.warning(
            "endpoint setting changed",
            endpoint=endpoint.id,
            pod=endpoint.pod_name or "none",
            setting="audit",
            before=endpoint.audit,
            after="as annotated" if audit is None else audit,
            **who(caller),
        )

    def open_host(self, caller: Caller) -> list[Setting]:
        """Put the host in audit, though nothing is known of it yet. Raises OSError: it is so, unsaved."""
        self._inputs.endpoint_options.put(EndpointOptions(endpoint=HOST_ENDPOINT, audit=True))
        log.warning("host opened before the agent is ready", setting="audit", after=True, **who(caller))
        self._files.save_audit(HOST_ENDPOINT, True)
        return [Setting(name="policy-audit-mode", value=True, source="live", option="PolicyAuditMode")]

    def forget_gone(self) -> None:
        """Drop the switches of endpoints that are no more: their numbers come again."""
        if self._attachments.pending:
            for identifier in self._attachments.take()[1]:
                self._inputs.endpoint_options.delete(identifier)
