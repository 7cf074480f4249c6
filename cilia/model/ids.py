"""Numbers that must not be mixed up."""

from __future__ import annotations

from typing import NewType

IdentityId = NewType("IdentityId", int)
"""A security identity (see `cilia.model.identity`)."""

EndpointId = NewType("EndpointId", int)
"""An endpoint on its node: 1..65535, unique on the node only."""

SubjectId = NewType("SubjectId", int)
"""An index into policy_active: one set of policy entries shared by all endpoints alike."""

Revision = NewType("Revision", int)
"""A policy revision: counted per node, never reused, 31 bits."""

Cookie = NewType("Cookie", int)
"""A 32-bit name for a set of rules; 0 names none."""
