"""What Cilia relies on in any Kubernetes API server; the embedded one is only the default."""

from __future__ import annotations

import random
import time
from typing import Any

import pytest

from tests.support.api_client import Client

CONFIG_MAPS = "/api/v1/namespaces/{}/configmaps"
PODS = "/api/v1/namespaces/{}/pods"
TABLE = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json"


def config_map(name: str, **labels: str) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": name, "labels": labels},
        "data": {"a": "1"},
    }


def pod(name: str, **more: Any) -> dict[str, Any]:
    spec = {"containers": [{"name": "main", "image": "example/none"}], **more}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec}


def names(answer: Any) -> list[str]:
    return [item["metadata"]["name"] for item in answer.json["items"]]


class TestObjects:
    def test_a_created_object_has_what_the_server_adds(self, api: Client, namespace: str) -> None:
        made = api.post(CONFIG_MAPS.format(namespace), config_map("a"))
        assert made.code == 201
        meta = made.json["metadata"]
        assert meta["uid"] and meta["creationTimestamp"] and int(meta["resourceVersion"]) > 0
        assert api.get(CONFIG_MAPS.format(namespace) + "/a").json == made.json

    def test_generate_name(self, api: Client, namespace: str) -> None:
        body = {"metadata": {"generateName": "some-"}}
        first, second = (api.post(CONFIG_MAPS.format(namespace), body).json["metadata"]["name"] for _ in "ab")
        assert first.startswith("some-") and first != second

    def test_the_same_name_twice(self, api: Client, namespace: str) -> None:
        api.post(CONFIG_MAPS.format(namespace), config_map("a"))
        again = api.post(CONFIG_MAPS.format(namespace), config_map("a"))
        assert (again.code, again.json["reason"]) == (409, "AlreadyExists")
        assert again.json["message"] == 'configmaps "a" already exists'
        assert again.json["details"]["name"] == "a"

    def test_absent_objects(self, api: Client, namespace: str) -> None:
        for answer in (
            api.get(CONFIG_MAPS.format(namespace) + "/x"),
            api.delete(CONFIG_MAPS.format(namespace) + "/x"),
            api.merge(CONFIG_MAPS.format(namespace) + "/x", {"data": {}}),
        ):
            assert (answer.code, answer.json["reason"]) == (404, "NotFound")
            assert answer.json["message"] == 'configmaps "x" not found'

    def test_no_namespace_no_object(self, api: Client) -> None:
        answer = api.post(CONFIG_MAPS.format("nowhere-to-be-seen"), config_map("a"))
        assert answer.code == 404
        assert answer.json["message"] == 'namespaces "nowhere-to-be-seen" not found'

    def test_optimistic_replace(self, api: Client, namespace: str) -> None:
        path = CONFIG_MAPS.format(namespace)
        first = api.post(path, config_map("a")).json
        changed = {**first, "data": {"a": "2"}}
        assert api.put(path + "/a", changed).code == 200
        stale = api.put(path + "/a", {**first, "data": {"a": "3"}})
        assert (stale.code, stale.json["reason"]) == (409, "Conflict")
        assert "the object has been modified" in stale.json["message"]

    def test_a_write_that_changes_nothing_keeps_its_version(self, api: Client, namespace: str) -> None:
        path = CONFIG_MAPS.format(namespace)
        first = api.post(path, config_map("a")).json
        assert api.put(path + "/a", first).json == first
        assert api.merge(path + "/a", {"data": {"a": "1"}}).json == first

    @pytest.mark.parametrize(
        ("kind", "patch"),
        [
            ("application/merge-patch+json", {"data": {"a": None, "b": "2"}}),
            ("application/strategic-merge-patch+json", {"data": {"a": None, "b": "2"}}),
            (
                "application/json-patch+json",
                [{"op": "remove", "path": "/data/a"}, {"op": "add", "path": "/data/b", "value": "2"}],
            ),
        ],
    )
    def test_patches(self, api: Client, namespace: str, kind: str, patch: Any) -> None:
        path = CONFIG_MAPS.format(namespace)
        api.post(path, config_map("a"))
        answer = api.call("PATCH", path + "/a", patch, kind=kind)
        assert (answer.code, answer.json["data"]) == (200, {"b": "2"})

    def test_a_patch_can_carry_a_precondition(self, api: Client, namespace: str) -> None:
        path = CONFIG_MAPS.format(namespace)
        api.post(path, config_map("a"))
        answer = api.merge(path + "/a", {"metadata": {"resourceVersion": "1"}, "data": {"b": "2"}})
        assert answer.code == 409

    def test_dry_run_changes_nothing(self, api: Client, namespace: str) -> None:
        path = CONFIG_MAPS.format(namespace)
        assert api.post(path, config_map("a"), dryRun="All").code == 201
        assert api.get(path + "/a").code == 404
        api.post(path, config_map("a"))
        assert api.delete(path + "/a", dryRun="All").code == 200
        assert api.merge(path + "/a", {"data": {"b": "2"}}, dryRun="All").json["data"] == {"a": "1", "b": "2"}
        assert api.get(path + "/a").json["data"] == {"a": "1"}

    def test_names_are_checked(self, api: Client, namespace: str) -> None:
        answer = api.post(CONFIG_MAPS.format(namespace), config_map("Not_A_Name"))
        assert (answer.code, answer.json["reason"]) == (422, "Invalid")
        assert answer.json["details"]["causes"][0]["field"] == "metadata.name"

    def test_labels_are_checked(self, api: Client, namespace: str) -> None:
        answer = api.post(CONFIG_MAPS.format(namespace), config_map("a", x="no spaces"))
        assert answer.code == 422

    @pytest.mark.parametrize(
        "body", [b"", b"{", b"[]", b"nothing", b"\xff\xfe", b'{"kind":"Pod","apiVersion":"v1"}']
    )
    def test_garbage_is_refused(self, api: Client, namespace: str, body: bytes) -> None:
        answer = api.call("POST", CONFIG_MAPS.format(namespace), body)
        assert answer.code == 400
        assert answer.json["kind"] == "Status"

    def test_a_body_has_a_bound(self, api: Client, namespace: str) -> None:
        answer = api.post(CONFIG_MAPS.format(namespace), {**config_map("a"), "data": {"a": "x" * (4 << 20)}})
        assert answer.code == 413


class TestStatus:
    def test_spec_and_status_are_kept_apart(self, api: Client, namespace: str, widgets: str) -> None:
        path = widgets.format(namespace)
        body = {"metadata": {"name": "w"}, "spec": {"size": 1}, "status": {"phase": "forged"}}
        kind = {"apiVersion": "test.cilia.example/v1", "kind": "Widget"}
        made = api.post(path, {**kind, **body}).json
        assert "status" not in made and made["metadata"]["generation"] == 1
        status = {**made, "spec": {"size": 5}, "status": {"phase": "good"}}
        after = api.put(path + "/w/status", status).json
        assert (after["spec"]["size"], after["status"], after["metadata"]["generation"]) == (
            1,
            {"phase": "good"},
            1,
        )
        after = api.put(path + "/w", {**after, "spec": {"size": 2}, "status": {"phase": "bad"}}).json
        assert (after["spec"]["size"], after["status"], after["metadata"]["generation"]) == (
            2,
            {"phase": "good"},
            2,
        )
        assert api.merge(path + "/w/status", {"status": {"more": 1}}).json["status"] == {
            "phase": "good",
            "more": 1,
        }

    def test_a_pod_begins_pending(self, api: Client, namespace: str) -> None:
        made = api.post(PODS.format(namespace), pod("p"))
        assert made.json["status"]["phase"] == "Pending"
        path = PODS.format(namespace) + "/p/status"
        assert api.merge(path, {"status": {"phase": "Running", "podIP": "10.0.0.1"}}).code == 200


class TestCustomResources:
    def test_values_are_validated(self, api: Client, namespace: str, widgets: str) -> None:
        kind = {"apiVersion": "test.cilia.example/v1", "kind": "Widget", "metadata": {"name": "w"}}
        for spec, field in (
            ({}, "spec.size"),
            ({"size": 10}, "spec.size"),
            ({"size": 1, "cidr": "x"}, "spec.cidr"),
        ):
            answer = api.post(widgets.format(namespace), {**kind, "spec": spec})
            assert (answer.code, answer.json["details"]["causes"][0]["field"]) == (422, field)

    def test_defaults_and_pruning(self, api: Client, namespace: str, widgets: str) -> None:
        kind = {"apiVersion": "test.cilia.example/v1", "kind": "Widget", "metadata": {"name": "w"}}
        body = {**kind, "spec": {"size": 1, "unknown": True}}
        strict = api.post(widgets.format(namespace), body, fieldValidation="Strict")
        assert strict.code == 400 and 'unknown field "spec.unknown"' in strict.json["message"]
        made = api.post(widgets.format(namespace), body, fieldValidation="Warn")
        assert made.json["spec"] == {"size": 1, "colour": "red"}
        assert "unknown field" in {k.lower(): v for k, v in made.headers.items()}["warning"]

    def test_replacing_needs_a_version(self, api: Client, namespace: str, widgets: str) -> None:
        path = widgets.format(namespace)
        kind = {"apiVersion": "test.cilia.example/v1", "kind": "Widget", "metadata": {"name": "w"}}
        api.post(path, {**kind, "spec": {"size": 1}})
        assert api.put(path + "/w", {**kind, "spec": {"size": 2}}).code == 422

    def test_columns(self, api: Client, namespace: str, widgets: str) -> None:
        path = widgets.format(namespace)
        kind = {"apiVersion": "test.cilia.example/v1", "kind": "Widget", "metadata": {"name": "w"}}
        api.post(path, {**kind, "spec": {"size": 4}})
        api.merge(path + "/w/status", {"status": {"conditions": [{"type": "Ready", "status": "True"}]}})
        shown = api.call("GET", path, accept=TABLE).json
        assert [column["name"] for column in shown["columnDefinitions"]] == ["Name", "Size", "Ready"]
        assert shown["rows"][0]["cells"] == ["w", 4, "True"]

    def test_a_definition_can_make_fields_selectable_later(
        self, api: Client, namespace: str, widgets: str
    ) -> None:
        path = widgets.format(namespace)
        kind = {"apiVersion": "test.cilia.example/v1", "kind": "Widget"}
        for name, colour in (("a", "red"), ("b", "blue")):
            api.post(path, {**kind, "metadata": {"name": name}, "spec": {"size": 1, "colour": colour}})
        place = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/widgets.test.cilia.example"
        change = [
            {
                "op": "add",
                "path": "/spec/versions/0/selectableFields",
                "value": [{"jsonPath": ".spec.colour"}],
            }
        ]
        assert api.call("PATCH", place, change, kind="application/json-patch+json").code == 200
        end = time.monotonic() + 60
        while (
            found := api.get(path, fieldSelector="spec.colour=blue")
        ).code == 400 and time.monotonic() < end:
            time.sleep(0.1)
        assert names(found) == ["b"]

    def test_a_bad_definition_is_refused(self, api: Client) -> None:
        body = {
            "metadata": {"name": "as.b.example"},
            "spec": {
                "group": "b.example",
                "scope": "Cluster",
                "names": {"plural": "as", "kind": "A"},
                "versions": [{"name": "v1", "served": True, "storage": True}],
            },
        }
        kind = {"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition"}
        answer = api.post("/apis/apiextensions.k8s.io/v1/customresourcedefinitions", {**kind, **body})
        assert answer.code == 422


class TestLists:
    def test_selectors(self, api: Client, namespace: str) -> None:
        path = CONFIG_MAPS.format(namespace)
        for name, tier in (("a", "web"), ("b", "db"), ("c", "web")):
            api.post(path, config_map(name, tier=tier))
        assert names(api.get(path, labelSelector="tier=web")) == ["a", "c"]
        assert names(api.get(path, labelSelector="tier in (db)")) == ["b"]
        assert [n for n in names(api.get(path, labelSelector="!tier")) if len(n) == 1] == []
        assert names(api.get(path, fieldSelector="metadata.name=b")) == ["b"]
        assert api.get(path, labelSelector="tier in").code == 400
        assert api.get(path, fieldSelector="data.a=1").code == 400

    def test_pods_by_node_and_phase(self, api: Client, namespace: str) -> None:
        path = PODS.format(namespace)
        api.post(path, pod("p", nodeName="n1"))
        api.post(path, pod("q"))
        assert names(api.get(path, fieldSelector="spec.nodeName=n1")) == ["p"]
        assert names(api.get(path, fieldSelector="spec.nodeName!=n1,status.phase=Pending")) == ["q"]

    def test_pages_are_one_snapshot(self, api: Client, namespace: str) -> None:
        path = CONFIG_MAPS.format(namespace)
        for number in range(5):
            api.post(path, config_map(f"m{number}", page="yes"))
        first = api.get(path, limit=2, labelSelector="page=yes")
        assert names(first) == ["m0", "m1"]
        api.delete(path + "/m3")
        api.post(path, config_map("m1a", page="yes"))
        token = first.json["metadata"]["continue"]
        second = api.get(path, limit=2, labelSelector="page=yes", **{"continue": token})
        third = api.get(
            path, limit=2, labelSelector="page=yes", **{"continue": second.json["metadata"]["continue"]}
        )
        assert names(second) + names(third) == ["m2", "m3", "m4"]
        assert second.json["metadata"]["resourceVersion"] == first.json["metadata"]["resourceVersion"]
        assert not third.json["metadata"].get("continue")

    def test_a_stale_page_is_gone(self, api: Client, namespace: str) -> None:
        answer = api.get(CONFIG_MAPS.format(namespace), limit=1, **{"continue": "never-was"})
        assert answer.code in (400, 410)

    def test_tables(self, api: Client, namespace: str) -> None:
        api.post(PODS.format(namespace), pod("p", nodeName="n1"))
        shown = api.call("GET", PODS.format(namespace), accept=TABLE).json
        assert shown["kind"] == "Table"
        cells = dict(
            zip((c["name"] for c in shown["columnDefinitions"]), shown["rows"][0]["cells"], strict=True)
        )
        assert (cells["Name"], cells["Ready"], cells["Status"], cells["Node"]) == (
            "p",
            "0/1",
            "Pending",
            "n1",
        )


class TestWatch:
    def test_events_follow_a_list(self, api: Client, namespace: str) -> None:
        path = CONFIG_MAPS.format(namespace)
        version = api.get(path).json["metadata"]["resourceVersion"]
        with api.watch(path, resourceVersion=version, fieldSelector="metadata.name=a") as events:
            api.post(path, config_map("a"))
            api.merge(path + "/a", {"data": {"a": "2"}})
            api.delete(path + "/a")
            seen = events.take(3)
        assert [event["type"] for event in seen] == ["ADDED", "MODIFIED", "DELETED"]
        versions = [int(event["object"]["metadata"]["resourceVersion"]) for event in seen]
        assert versions == sorted(set(versions))
        assert seen[2]["object"]["data"] == {"a": "2"}

    def test_history_is_replayed(self, api: Client, namespace: str) -> None:
        path = CONFIG_MAPS.format(namespace)
        first = api.post(path, config_map("a")).json["metadata"]["resourceVersion"]
        api.merge(path + "/a", {"data": {"b": "2"}})
        with api.watch(path, resourceVersion=first) as events:
            assert events.next()["object"]["data"] == {"a": "1", "b": "2"}

    def test_without_a_version_the_present_comes_first(self, api: Client, namespace: str) -> None:
        path = CONFIG_MAPS.format(namespace)
        api.post(path, config_map("a", mine="yes"))
        with api.watch(path, labelSelector="mine=yes") as events:
            assert events.next()["type"] == "ADDED"

    def test_leaving_a_selector_looks_like_deletion(self, api: Client, namespace: str) -> None:
        path = CONFIG_MAPS.format(namespace)
        version = api.get(path).json["metadata"]["resourceVersion"]
        with api.watch(path, resourceVersion=version, labelSelector="tier=web") as events:
            api.post(path, config_map("a", tier="db"))
            api.merge(path + "/a", {"metadata": {"labels": {"tier": "web"}}})
            api.merge(path + "/a", {"metadata": {"labels": {"tier": "db"}}})
            assert [event["type"] for event in events.take(2)] == ["ADDED", "DELETED"]

    def test_streaming_lists_end_with_a_bookmark(self, api: Client, namespace: str) -> None:
        path = CONFIG_MAPS.format(namespace)
        api.post(path, config_map("a", mine="yes"))
        query = {
            "sendInitialEvents": "true",
            "resourceVersionMatch": "NotOlderThan",
            "allowWatchBookmarks": "true",
            "labelSelector": "mine=yes",
        }
        with api.watch(path, **query) as events:
            added, mark = events.take(2)
        assert (added["type"], mark["type"]) == ("ADDED", "BOOKMARK")
        assert mark["object"]["metadata"]["annotations"]["k8s.io/initial-events-end"] == "true"

    def test_a_watch_ends_when_its_time_is_over(self, api: Client, namespace: str) -> None:
        with api.watch(CONFIG_MAPS.format(namespace), timeoutSeconds=1, labelSelector="none=here") as events:
            assert list(events) == []

    def test_versions_that_are_not_kept_are_gone(self, api: Client, namespace: str) -> None:
        with api.watch(CONFIG_MAPS.format(namespace), resourceVersion="999999999999") as events:
            if events.code == 200:
                pytest.skip("this server waits for future versions")
            assert events.code == 410

    def test_a_cache_that_follows_equals_a_new_list(self, api: Client, namespace: str) -> None:
        path, chosen = CONFIG_MAPS.format(namespace), {"labelSelector": "tier=web"}
        dice = random.Random(7)
        version = api.get(path, **chosen).json["metadata"]["resourceVersion"]
        cache: dict[str, Any] = {}
        with api.watch(path, resourceVersion=version, **chosen) as events:
            for _ in range(60):
                name, tier = f"m{dice.randrange(5)}", dice.choice(["web", "db"])
                if api.post(path, config_map(name, tier=tier)).code != 409:
                    continue
                if dice.random() < 0.4:
                    api.delete(f"{path}/{name}")
                else:
                    api.merge(f"{path}/{name}", {"metadata": {"labels": {"tier": tier}}, "data": {"n": tier}})
            api.post(path, config_map("the-end", tier="web"))
            for event in events:
                item = event["object"]
                if event["type"] == "DELETED":
                    del cache[item["metadata"]["name"]]
                else:
                    cache[item["metadata"]["name"]] = {**item, "apiVersion": "v1", "kind": "ConfigMap"}
                if item["metadata"]["name"] == "the-end":
                    break
        listed = api.get(path, **chosen).json["items"]
        expected = [{**item, "apiVersion": "v1", "kind": "ConfigMap"} for item in listed]
        assert [cache[name] for name in sorted(cache)] == expected

    def test_table_watches(self, api: Client, namespace: str) -> None:
        path = PODS.format(namespace)
        with api.watch(path, accept=TABLE) as events:
            api.post(path, pod("p"))
            api.post(path, pod("q"))
            first, second = events.take(2)
        assert first["object"]["columnDefinitions"] and first["object"]["rows"][0]["cells"][0] == "p"
        assert second["object"]["rows"][0]["cells"][0] == "q"


class TestDeletion:
    def test_finalizers_hold(self, api: Client, namespace: str) -> None:
        path = CONFIG_MAPS.format(namespace)
        body = config_map("a")
        body["metadata"]["finalizers"] = ["example.com/hold"]
        api.post(path, body)
        held = api.delete(path + "/a")
        assert held.code == 200
        assert "deletionTimestamp" in api.get(path + "/a").json["metadata"]
        late = {"metadata": {"finalizers": ["example.com/hold", "example.com/late"]}}
        assert api.merge(path + "/a", late).code == 422
        api.merge(path + "/a", {"metadata": {"finalizers": None}})
        assert api.get(path + "/a").code == 404

    def test_preconditions(self, api: Client, namespace: str) -> None:
        path = CONFIG_MAPS.format(namespace)
        made = api.post(path, config_map("a")).json
        wrong = {"kind": "DeleteOptions", "apiVersion": "v1", "preconditions": {"uid": "other"}}
        assert api.delete(path + "/a", wrong).code == 409
        right = {**wrong, "preconditions": {"uid": made["metadata"]["uid"]}}
        assert api.delete(path + "/a", right).code == 200

    def _owned(self, api: Client, namespace: str, policy: str) -> tuple[str, str]:
        path = CONFIG_MAPS.format(namespace)
        owner = api.post(path, config_map("owner")).json
        child = config_map("child")
        child["metadata"]["ownerReferences"] = [
            {
                "apiVersion": "v1",
                "kind": "ConfigMap",
                "name": "owner",
                "uid": owner["metadata"]["uid"],
                "blockOwnerDeletion": True,
            }
        ]
        api.post(path, child)
        options = {"kind": "DeleteOptions", "apiVersion": "v1", "propagationPolicy": policy}
        assert api.delete(path + "/owner", options).code == 200
        return path + "/owner", path + "/child"

    @pytest.mark.parametrize("policy", ["Background", "Foreground"])
    def test_dependents_go_with_their_owner(self, api: Client, namespace: str, policy: str) -> None:
        owner, child = self._owned(api, namespace, policy)
        api.until_gone(child)
        api.until_gone(owner)

    def test_orphans_stay(self, api: Client, namespace: str) -> None:
        owner, child = self._owned(api, namespace, "Orphan")
        api.until_gone(owner)
        assert "ownerReferences" not in api.get(child).json["metadata"]

    def test_pods_end_gracefully(self, api: Client, namespace: str) -> None:
        path = PODS.format(namespace)
        api.post(path, pod("p", nodeName="n1"))
        marked = api.delete(path + "/p").json
        assert marked["metadata"]["deletionGracePeriodSeconds"] == 30
        assert api.get(path + "/p").code == 200
        assert api.delete(path + "/p", gracePeriodSeconds=0).code == 200
        assert api.get(path + "/p").code == 404

    def test_collections(self, api: Client, namespace: str) -> None:
        path = CONFIG_MAPS.format(namespace)
        for name, tier in (("a", "web"), ("b", "db")):
            api.post(path, config_map(name, tier=tier))
        assert api.delete(path, labelSelector="tier=web").code == 200
        assert [name for name in names(api.get(path)) if len(name) == 1] == ["b"]

    def test_a_namespace_takes_its_content_along(self, api: Client, namespace: str) -> None:
        path = CONFIG_MAPS.format(namespace)
        api.post(path, config_map("a"))
        assert api.delete(f"/api/v1/namespaces/{namespace}").json["status"]["phase"] == "Terminating"
        api.until_gone(f"/api/v1/namespaces/{namespace}")
        assert api.get(path + "/a").code == 404

    def test_a_namespace_that_ends_takes_nothing_new(self, api: Client, namespace: str) -> None:
        path = CONFIG_MAPS.format(namespace)
        body = config_map("a")
        body["metadata"]["finalizers"] = ["example.com/hold"]
        api.post(path, body)
        api.delete(f"/api/v1/namespaces/{namespace}")
        refused = api.post(path, config_map("b"))
        assert refused.code == 403
        api.merge(path + "/a", {"metadata": {"finalizers": None}})
        api.until_gone(f"/api/v1/namespaces/{namespace}")


class TestKinds:
    @pytest.mark.parametrize(
        "rule",
        [
            {"from": [{"ipBlock": {"cidr": "10.0.0.0"}}]},
            {"from": [{"ipBlock": {"cidr": "10.0.0.0/8", "except": ["11.0.0.0/16"]}}]},
            {"from": [{"ipBlock": {"cidr": "10.0.0.0/8"}, "podSelector": {}}]},
            {"from": [{}]},
            {"ports": [{"port": 70000}]},
            {"ports": [{"port": 80, "endPort": 79}]},
            {"ports": [{"protocol": "ICMP"}]},
        ],
    )
    def test_network_policies_are_validated(self, api: Client, namespace: str, rule: Any) -> None:
        body = {
            "apiVersion": "networking.k8s.io/v1",
            "kind": "NetworkPolicy",
            "metadata": {"name": "p"},
            "spec": {"podSelector": {}, "ingress": [rule]},
        }
        path = f"/apis/networking.k8s.io/v1/namespaces/{namespace}/networkpolicies"
        assert api.post(path, body).code == 422
        body["spec"] = {"podSelector": {}, "egress": [{}]}
        assert api.post(path, body).json["spec"]["policyTypes"] == ["Ingress", "Egress"]

    def test_leases_race(self, api: Client, namespace: str) -> None:
        path = f"/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases"
        body = {
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": {"name": "leader"},
            "spec": {
                "holderIdentity": "a",
                "leaseDurationSeconds": 15,
                "renewTime": "2026-01-01T00:00:00.000000Z",
            },
        }
        made = api.post(path, body).json
        won = api.put(path + "/leader", {**made, "spec": {**made["spec"], "holderIdentity": "b"}})
        lost = api.put(path + "/leader", {**made, "spec": {**made["spec"], "holderIdentity": "c"}})
        assert (won.code, lost.code) == (200, 409)

    def test_events_have_two_faces(self, api: Client, namespace: str) -> None:
        body = {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"name": "e", "namespace": namespace},
            "involvedObject": {"kind": "Pod", "name": "p", "namespace": namespace},
            "reason": "Tested",
            "message": "hello",
            "type": "Normal",
            "lastTimestamp": "2100-01-01T00:00:00Z",
        }
        assert api.post(f"/api/v1/namespaces/{namespace}/events", body).code == 201
        seen = api.get(f"/apis/events.k8s.io/v1/namespaces/{namespace}/events/e").json
        assert (seen["apiVersion"], seen["note"], seen["regarding"]["name"]) == (
            "events.k8s.io/v1",
            "hello",
            "p",
        )
        found = api.get(f"/api/v1/namespaces/{namespace}/events", fieldSelector="involvedObject.name=p")
        assert names(found) == ["e"]

    def test_binding_a_pod(self, api: Client, namespace: str) -> None:
        path = PODS.format(namespace)
        api.post(path, pod("p"))
        body = {
            "apiVersion": "v1",
            "kind": "Binding",
            "metadata": {"name": "p"},
            "target": {"kind": "Node", "name": "n1"},
        }
        assert api.post(path + "/p/binding", body).code == 201
        assert api.get(path + "/p").json["spec"]["nodeName"] == "n1"
        assert api.post(path + "/p/binding", body).code == 409


class TestDiscovery:
    def test_groups_and_resources(self, api: Client, widgets: str) -> None:
        assert api.get("/api").json["versions"] == ["v1"]
        groups = {group["name"] for group in api.get("/apis").json["groups"]}
        assert {
            "apiextensions.k8s.io",
            "coordination.k8s.io",
            "networking.k8s.io",
            "test.cilia.example",
        } <= groups
        listed = {r["name"]: r for r in api.get("/apis/test.cilia.example/v1").json["resources"]}
        assert listed["widgets"]["shortNames"] == ["wg"]
        assert "widgets/status" in listed

    def test_aggregated(self, api: Client, widgets: str) -> None:
        accept = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList"
        found = api.call("GET", "/apis", accept=accept).json
        assert found["kind"] == "APIGroupDiscoveryList"
        item = next(i for i in found["items"] if i["metadata"]["name"] == "test.cilia.example")
        assert item["versions"][0]["resources"][0]["responseKind"]["kind"] == "Widget"

    def test_health_and_version(self, api: Client) -> None:
        for path in ("/healthz", "/livez", "/readyz"):
            assert (api.get(path).code, api.get(path).body) == (200, b"ok")
        assert api.get("/version").json["gitVersion"].startswith("v1.")

    def test_schemas(self, api: Client, widgets: str) -> None:
        place = api.get("/openapi/v3").json["paths"]["apis/test.cilia.example/v1"]["serverRelativeURL"]
        schemas = api.get(place).json["components"]["schemas"]
        assert any("size" in str(schema.get("properties", {}).get("spec")) for schema in schemas.values())

    def test_unknown_paths(self, api: Client, namespace: str) -> None:
        for path in (
            "/nothing",
            "/api/v2/pods",
            "/apis/no.such/v1",
            f"/api/v1/namespaces/{namespace}/unicorns",
        ):
            answer = api.get(path)
            assert answer.code == 404
