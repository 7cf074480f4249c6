/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#pragma once

/* Every reason a packet can drop for: X(code, NAME, "what happened"). The codes and names are those
 * of Hubble's DropReason, so that clients print them as they always did. */
#define DROP_REASONS(X)                                                                            \
	X(132, INVALID_SOURCE_IP, "the source address is not the sender's")                        \
	X(133, POLICY_DENIED, "no rule allows it")                                                 \
	X(134, INVALID_PACKET_DROPPED, "the packet is malformed")                                  \
	X(135, CT_TRUNCATED_OR_INVALID_HEADER, "a header is cut off or invalid")                   \
	X(137, CT_UNKNOWN_L4_PROTOCOL, "connection tracking does not know the protocol")           \
	X(139, UNSUPPORTED_L3_PROTOCOL, "neither IPv4, IPv6 nor ARP")                              \
	X(141, ERROR_WRITING_TO_PACKET, "the packet could not be rewritten")                       \
	X(142, UNKNOWN_L4_PROTOCOL, "the transport protocol may not be sent there")                \
	X(144, UNKNOWN_ICMPV4_TYPE, "an ICMP type that starts no flow and belongs to none")        \
	X(146, UNKNOWN_ICMPV6_TYPE, "an ICMPv6 type that starts no flow and belongs to none")      \
	X(147, ERROR_RETRIEVING_TUNNEL_KEY, "the tunnel key is missing")                           \
	X(150, UNKNOWN_L3_TARGET_ADDRESS, "nobody is known at the destination address")            \
	X(151, STALE_OR_UNROUTABLE_IP, "the destination no longer exists")                         \
	X(153, ERROR_WHILE_CORRECTING_L3_CHECKSUM, "the IP checksum could not be corrected")       \
	X(154, ERROR_WHILE_CORRECTING_L4_CHECKSUM,                                                 \
	  "the transport checksum could not be corrected")                                         \
	X(155, CT_MAP_INSERTION_FAILED, "the connection table is full")                            \
	X(156, INVALID_IPV6_EXTENSION_HEADER, "IPv6 extension headers out of order or too many")   \
	X(157, IP_FRAGMENTATION_NOT_SUPPORTED, "a fragment of an ICMP error")                      \
	X(158, SERVICE_BACKEND_NOT_FOUND, "the service has no backend")                            \
	X(160, NO_TUNNEL_OR_ENCAPSULATION_ENDPOINT, "no node is known for the destination")        \
	X(163, UNKNOWN_CONNECTION_TRACKING_STATE, "a reply to a flow that was never opened")       \
	X(165, NO_CONFIGURATION_AVAILABLE_TO_PERFORM_POLICY_DECISION, "no policy is known yet")    \
	X(167, NO_MAPPING_FOR_NAT_MASQUERADE, "no free source port to masquerade with")            \
	X(168, UNSUPPORTED_PROTOCOL_FOR_NAT_MASQUERADE, "a protocol that can't be masqueraded")    \
	X(169, FIB_LOOKUP_FAILED, "the node has no route")                                         \
	X(170, ENCAPSULATION_TRAFFIC_IS_PROHIBITED, "tunnel traffic that no node may have sent")   \
	X(171, INVALID_IDENTITY, "the identity in the tunnel key is not the source's")             \
	X(172, UNKNOWN_SENDER, "the sending interface belongs to no endpoint")                     \
	X(173, NAT_NOT_NEEDED, "the same ports are in use towards the backend by another way")     \
	X(174, IS_A_CLUSTERIP, "a cluster address, asked for from outside")                        \
	X(175, FIRST_LOGICAL_DATAGRAM_FRAGMENT_NOT_FOUND, "a fragment without its first")          \
	X(176, FORBIDDEN_ICMPV6_MESSAGE, "a neighbour-discovery message pods may not send")        \
	X(177, DENIED_BY_LB_SRC_RANGE_CHECK, "the service's source ranges keep the client out")    \
	X(181, POLICY_DENY, "a deny rule matched")                                                 \
	X(182, VLAN_FILTERED, "VLAN tags are not allowed here")                                    \
	X(183, INVALID_VNI, "the tunnel key is not a valid identity")                              \
	X(192, INVALID_CLUSTER_ID, "the cluster id in the tunnel key is not known")                \
	X(193, UNSUPPORTED_PROTOCOL_FOR_DSR_ENCAP, "a packet that can't tell its service")         \
	X(196, TTL_EXCEEDED, "the packet's time to live ran out")                                  \
	X(198, DROP_RATE_LIMITED, "the endpoint's connection quota is used up")                    \
	X(202, DROP_HOST_NOT_READY, "the node is not ready yet")                                   \
	X(203, DROP_EP_NOT_READY, "the endpoint is not ready yet")

enum drop_reason {
	FORWARDED = 0,
#define DROP_REASON_ENTRY(code, name, sentence) DROP_##name = code,
	DROP_REASONS(DROP_REASON_ENTRY)
#undef DROP_REASON_ENTRY
};
