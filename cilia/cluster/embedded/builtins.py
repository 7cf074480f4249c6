"""The built-in kinds: their schemas (light where Cilia does not look) and the table of all of them.

Source: the Kubernetes API reference (https://kubernetes.io/docs/reference/kubernetes-api/).
"""

from __future__ import annotations

from typing import Any, Final

from . import columns, rules
from .printing import Column
from .registry import Kind, Version
from .schema import Schema

# --- words for schemas -------------------------------------------------------------------------------------

_STR: Final[Schema] = {"type": "string"}
_INT: Final[Schema] = {"type": "integer"}
_INT32: Final[Schema] = {"type": "integer", "format": "int32"}
_BOOL: Final[Schema] = {"type": "boolean"}
_TIME: Final[Schema] = {"type": "string", "format": "date-time"}
_PORT: Final[Schema] = {"type": "integer", "format": "int32", "minimum": 1, "maximum": 65535}
_INT_OR_STR: Final[Schema] = {"x-kubernetes-int-or-string": True}


def _obj(*needed: str, **properties: Schema) -> Schema:
    schema: Schema = {"type": "object", "properties": properties}
    if needed:
        schema["required"] = list(needed)
    return schema


def _open(*needed: str, **properties: Schema) -> Schema:
    return {**_obj(*needed, **properties), "x-kubernetes-preserve-unknown-fields": True}


def _list(items: Schema) -> Schema:
    return {"type": "array", "items": items}


def _map(values: Schema) -> Schema:
    return {"type": "object", "additionalProperties": values}


def _choice(*values: str) -> Schema:
    return {"type": "string", "enum": list(values)}


def _object(*needed: str, **properties: Schema) -> Schema:
    return _obj(*needed, apiVersion=_STR, kind=_STR, metadata={"type": "object"}, **properties)


_SELECTOR: Final = _obj(
    matchLabels=_map(_STR),
    matchExpressions=_list(
        _obj(
            "key",
            "operator",
            key=_STR,
            operator=_choice("In", "NotIn", "Exists", "DoesNotExist"),
            values=_list(_STR),
        )
    ),
)
_REFERENCE: Final = _obj(
    kind=_STR, namespace=_STR, name=_STR, uid=_STR, apiVersion=_STR, resourceVersion=_STR, fieldPath=_STR
)
_CONDITIONS: Final = _list(_open("type", "status", type=_STR, status=_choice("True", "False", "Unknown")))

_PROTOCOL: Final = _choice("TCP", "UDP", "SCTP")
_CONTAINER: Final = _open(
    "name",
    name=_STR,
    image=_STR,
    command=_list(_STR),
    args=_list(_STR),
    env=_list(_open("name", name=_STR)),
    ports=_list(
        _obj(
            "containerPort", name=_STR, containerPort=_PORT, protocol=_PROTOCOL, hostPort=_INT32, hostIP=_STR
        )
    ),
)
_NETWORK_PEER: Final = _obj(
    podSelector=_SELECTOR,
    namespaceSelector=_SELECTOR,
    ipBlock=_obj("cidr", **{"cidr": _STR, "except": _list(_STR)}),
)
_NETWORK_PORT: Final = _obj(protocol=_PROTOCOL, port=_INT_OR_STR, endPort=_INT32)
_EVENT_SERIES: Final = _open(count=_INT32)

# --- the table ---------------------------------------------------------------------------------------------


def _kind(
    group: str,
    version: Version,
    plural: str,
    kind: str,
    *,
    namespaced: bool = True,
    short: tuple[str, ...] = (),
    **more: Any,
) -> Kind:
    return Kind(
        group=group,
        versions=(version,),
        storage=version.name,
        plural=plural,
        singular=kind.lower(),
        kind=kind,
        list_kind=kind + "List",
        namespaced=namespaced,
        short_names=short,
        **more,
    )


def _v1(schema: Schema, shown: tuple[Column, ...], *, status: bool = False) -> Version:
    return Version("v1", schema, shown, status)


_POD: Final = _object(
    "spec",
    spec=_open(
        "containers",
        containers=_list(_CONTAINER),
        initContainers=_list(_CONTAINER),
        nodeName=_STR,
        nodeSelector=_map(_STR),
        hostNetwork=_BOOL,
        serviceAccountName=_STR,
        restartPolicy=_choice("Always", "OnFailure", "Never"),
        terminationGracePeriodSeconds=_INT,
        tolerations=_list(_open()),
    ),
    status=_open(
        phase=_choice("Pending", "Running", "Succeeded", "Failed", "Unknown"),
        podIP=_STR,
        podIPs=_list(_open(ip=_STR)),
        hostIP=_STR,
        conditions=_CONDITIONS,
    ),
)
_NODE: Final = _object(
    spec=_open(podCIDR=_STR, podCIDRs=_list(_STR), unschedulable=_BOOL, taints=_list(_open("key", "effect"))),
    status=_open(addresses=_list(_obj("type", "address", type=_STR, address=_STR)), conditions=_CONDITIONS),
)
_SERVICE: Final = _object(
    spec=_open(
        type=_choice("ClusterIP", "NodePort", "LoadBalancer", "ExternalName"),
        clusterIP=_STR,
        clusterIPs={**_list(_STR), "maxItems": 2},
        ipFamilies={**_list(_choice("IPv4", "IPv6")), "maxItems": 2},
        ipFamilyPolicy=_choice("SingleStack", "PreferDualStack", "RequireDualStack"),
        externalIPs=_list(_STR),
        externalName=_STR,
        externalTrafficPolicy=_choice("Cluster", "Local"),
        internalTrafficPolicy=_choice("Cluster", "Local"),
        trafficDistribution=_choice("PreferClose", "PreferSameZone", "PreferSameNode"),
        healthCheckNodePort=_INT32,
        allocateLoadBalancerNodePorts=_BOOL,
        loadBalancerClass=_STR,
        loadBalancerIP=_STR,
        loadBalancerSourceRanges=_list(_STR),
        publishNotReadyAddresses=_BOOL,
        selector=_map(_STR),
        sessionAffinity=_choice("None", "ClientIP"),
        sessionAffinityConfig=_obj(clientIP=_obj(timeoutSeconds=_INT32)),
        ports=_list(
            _obj(
                "port",
                name=_STR,
                port=_PORT,
                targetPort=_INT_OR_STR,
                protocol=_PROTOCOL,
                nodePort=_INT32,
                appProtocol=_STR,
            )
        ),
    ),
    status=_open(
        loadBalancer=_open(
            ingress=_list(_open(ip=_STR, hostname=_STR, ipMode=_choice("VIP", "Proxy"), ports=_list(_open())))
        ),
        conditions=_CONDITIONS,
    ),
)
_SLICE: Final = _object(
    "addressType",
    "endpoints",
    addressType=_choice("IPv4", "IPv6", "FQDN"),
    endpoints=_list(
        _obj(
            "addresses",
            addresses={**_list(_STR), "minItems": 1, "maxItems": 100},
            conditions=_obj(ready=_BOOL, serving=_BOOL, terminating=_BOOL),
            hostname=_STR,
            nodeName=_STR,
            zone=_STR,
            targetRef=_REFERENCE,
            hints=_open(),
            deprecatedTopology=_map(_STR),
        )
    ),
    ports=_list(_obj(name=_STR, protocol=_PROTOCOL, port=_INT32, appProtocol=_STR)),
)
_POLICY: Final = _object(
    spec=_obj(
        podSelector=_SELECTOR,
        policyTypes=_list(_STR),
        ingress=_list(_obj(ports=_list(_NETWORK_PORT), **{"from": _list(_NETWORK_PEER)})),
        egress=_list(_obj(ports=_list(_NETWORK_PORT), to=_list(_NETWORK_PEER))),
    )
)
_LEASE: Final = _object(
    spec=_obj(
        holderIdentity=_STR,
        leaseDurationSeconds={**_INT32, "minimum": 1},
        acquireTime=_TIME,
        renewTime=_TIME,
        leaseTransitions=_INT32,
        strategy=_STR,
        preferredHolder=_STR,
    )
)
_EVENT: Final = _object(
    "involvedObject",
    involvedObject=_REFERENCE,
    reason=_STR,
    message=_STR,
    type=_STR,
    source=_obj(component=_STR, host=_STR),
    firstTimestamp={**_TIME, "nullable": True},
    lastTimestamp={**_TIME, "nullable": True},
    eventTime={**_TIME, "nullable": True},
    count=_INT32,
    series=_EVENT_SERIES,
    action=_STR,
    related=_REFERENCE,
    reportingComponent=_STR,
    reportingInstance=_STR,
)
_NEW_EVENT: Final = _object(
    regarding=_REFERENCE,
    reason=_STR,
    note=_STR,
    type=_STR,
    eventTime={**_TIME, "nullable": True},
    series=_EVENT_SERIES,
    action=_STR,
    related=_REFERENCE,
    reportingController=_STR,
    reportingInstance=_STR,
    deprecatedSource=_open(),
    deprecatedFirstTimestamp={**_TIME, "nullable": True},
    deprecatedLastTimestamp={**_TIME, "nullable": True},
    deprecatedCount=_INT32,
)
_DEFINITION: Final = _object(
    "spec",
    spec=_open(
        "group",
        "names",
        "scope",
        "versions",
        group=_STR,
        names=_open(
            "plural",
            "kind",
            plural=_STR,
            kind=_STR,
            singular=_STR,
            listKind=_STR,
            shortNames=_list(_STR),
            categories=_list(_STR),
        ),
        conversion=_open(strategy=_STR),
        scope=_choice("Cluster", "Namespaced"),
        versions={
            **_list(
                _open(
                    "name",
                    "served",
                    "storage",
                    name=_STR,
                    served=_BOOL,
                    storage=_BOOL,
                    schema=_open(openAPIV3Schema=_open()),
                    additionalPrinterColumns=_list(_open()),
                    selectableFields=_list(_open()),
                    subresources=_open(status=_open(), scale=_open()),
                )
            ),
            "minItems": 1,
        },
    ),
    status=_open(
        conditions=_list(_open("type", type=_STR)),
        storedVersions=_list(_STR),
        acceptedNames=_open(),
    ),
)

_EVENT_FIELDS: Final = (
    *(
        f"involvedObject.{name}"
        for name in ("kind", "namespace", "name", "uid", "apiVersion", "resourceVersion")
    ),
    "involvedObject.fieldPath",
    "reason",
    "reportingComponent",
    "source",
    "type",
)

KINDS: Final = (
    _kind(
        "",
        _v1(
            _object(spec=_open(), status=_open()),
            columns.NAMESPACE,
            status=True,
        ),
        "namespaces",
        "Namespace",
        namespaced=False,
        short=("ns",),
        subresources=("finalize", "status"),
        fields=("status.phase",),
        complete=rules.complete_namespace,
        verbs=("create", "delete", "get", "list", "patch", "update", "watch"),
    ),
    _kind(
        "",
        _v1(_NODE, columns.NODE, status=True),
        "nodes",
        "Node",
        namespaced=False,
        short=("no",),
        subresources=("status",),
        fields=("spec.unschedulable",),
    ),
    _kind(
        "",
        _v1(_POD, columns.POD, status=True),
        "pods",
        "Pod",
        short=("po",),
        categories=("all",),
        subresources=("binding", "status"),
        fields=(
            "spec.nodeName",
            "spec.restartPolicy",
            "spec.schedulerName",
            "spec.serviceAccountName",
            "spec.hostNetwork",
            "status.phase",
            "status.podIP",
            "status.nominatedNodeName",
        ),
        check=rules.check_pod,
        complete=rules.complete_pod,
    ),
    _kind(
        "",
        _v1(_SERVICE, columns.SERVICE, status=True),
        "services",
        "Service",
        short=("svc",),
        categories=("all",),
        subresources=("status",),
        fields=("spec.clusterIP", "spec.type"),
        check=rules.check_service,
        complete=rules.complete_service,
    ),
    _kind(
        "",
        _v1(
            _object(
                secrets=_list(_open()), imagePullSecrets=_list(_open()), automountServiceAccountToken=_BOOL
            ),
            columns.SERVICE_ACCOUNT,
        ),
        "serviceaccounts",
        "ServiceAccount",
        short=("sa",),
    ),
    _kind(
        "",
        _v1(
            _object(data=_map(_STR), binaryData=_map(_STR), immutable=_BOOL),
            columns.CONFIG_MAP,
        ),
        "configmaps",
        "ConfigMap",
        short=("cm",),
    ),
    _kind(
        "",
        _v1(
            _object(data=_map({**_STR, "format": "byte"}), stringData=_map(_STR), type=_STR, immutable=_BOOL),
            columns.SECRET,
        ),
        "secrets",
        "Secret",
        fields=("type",),
        complete=rules.complete_secret,
    ),
    _kind(
        "",
        _v1(_EVENT, columns.EVENT),
        "events",
        "Event",
        short=("ev",),
        fields=_EVENT_FIELDS,
    ),
    _kind(
        "events.k8s.io",
        Version("v1", _NEW_EVENT, columns.EVENT, inward=rules.event_inward, outward=rules.event_outward),
        "events",
        "Event",
        short=("ev",),
        resource="/events",
        fields=_EVENT_FIELDS,
    ),
    _kind(
        "discovery.k8s.io",
        _v1(
            _SLICE,
            columns.ENDPOINT_SLICE,
        ),
        "endpointslices",
        "EndpointSlice",
        check=rules.check_slice,
    ),
    _kind(
        "networking.k8s.io",
        _v1(_POLICY, columns.NETWORK_POLICY),
        "networkpolicies",
        "NetworkPolicy",
        short=("netpol",),
        check=rules.check_policy,
        complete=rules.complete_policy,
    ),
    _kind(
        "coordination.k8s.io",
        _v1(_LEASE, columns.LEASE),
        "leases",
        "Lease",
    ),
    _kind(
        "apiextensions.k8s.io",
        _v1(_DEFINITION, columns.DEFINITION, status=True),
        "customresourcedefinitions",
        "CustomResourceDefinition",
        namespaced=False,
        short=("crd", "crds"),
        categories=("api-extensions",),
        subresources=("status",),
    ),
)
