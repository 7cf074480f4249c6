"""Kubeconfig files, the in-cluster account and exec plugins give credentials or a clear sentence."""

import asyncio
import contextlib
import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cilia.cluster.kube.credentials import TOKEN_FILE_SECONDS, Credentials
from cilia.cluster.kube.kubeconfig import ConfigError, Endpoint, ExecSpec, discover, in_cluster, load
from cilia.kit.clock import ManualClock

CONFIG = """
apiVersion: v1
kind: Config
current-context: here
contexts:
- {name: here, context: {cluster: one, user: me, namespace: apps}}
- {name: plain, context: {cluster: two, user: robot}}
clusters:
- {name: one, cluster: {server: "https://api.example:6443/", certificate-authority: ca.pem,
    tls-server-name: api}}
- {name: two, cluster: {server: "http://127.0.0.1:8080", insecure-skip-tls-verify: true}}
users:
- {name: me, user: {token: secret, client-certificate-data: Q0VSVA==, client-key: key.pem}}
- {name: robot, user: {exec: {apiVersion: client.authentication.k8s.io/v1, command: ./login,
    args: [now], env: [{name: A, value: b}], provideClusterInfo: true}}}
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    (tmp_path / "ca.pem").write_bytes(b"CA")
    (tmp_path / "key.pem").write_bytes(b"KEY")
    path = tmp_path / "config"
    path.write_text(CONFIG)
    return path


def test_the_current_context_is_resolved(config: Path) -> None:
    assert load([config]) == Endpoint(
        server="https://api.example:6443",
        ca=b"CA",
        server_name="api",
        client_certificate=b"CERT",
        client_key=b"KEY",
        token="secret",
        namespace="apps",
    )


def test_another_context_by_name(config: Path) -> None:
    endpoint = load([config], context="plain")
    assert endpoint.insecure
    assert endpoint.exec_spec == ExecSpec(
        command=str(config.parent / "login"), args=("now",), env={"A": "b"}, provide_cluster_info=True
    )


def test_of_several_files_the_first_wins(config: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.write_text("current-context: plain\nusers: [{name: robot, user: {token: t}}]")
    endpoint = discover(None, {"KUBECONFIG": f"{other}:{tmp_path / 'absent'}:{config}"})
    assert (endpoint.server, endpoint.token) == ("http://127.0.0.1:8080", "t")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (("current-context: here", ""), "no current-context"),
        (("cluster: one,", "cluster: none,"), "no entry 'none' in clusters"),
        (("ca.pem", "missing.pem"), r"missing.pem can't be read"),
        (("token: secret,", "auth-provider: {},"), "exec credential plugin"),
        (("apiVersion: v1", "{"), "can't be read"),
        (('server: "https://api.example:6443/",', ""), "has no server"),
    ],
)
def test_mistakes_are_named(config: Path, change: tuple[str, str], sentence: str) -> None:
    config.write_text(CONFIG.replace(*change, 1))
    with pytest.raises(ConfigError, match=sentence):
        load([config])


NAMES = ["current-context", "contexts", "context", "clusters", "cluster", "users", "user", "name", "server"]
NAMES += ["exec", "command", "env", "args", "value", "token", "tokenFile", "certificate-authority", "a"]
LEAVES = st.one_of(st.none(), st.booleans(), st.integers(), st.sampled_from(["a", "", "\0", "/"]))
DOCUMENTS = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=2), st.dictionaries(st.sampled_from(NAMES), inner, max_size=4)
    ),
    max_leaves=24,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cluster=DOCUMENTS, user=DOCUMENTS, document=DOCUMENTS)
def test_any_file_is_a_configuration_or_a_sentence(
    tmp_path: Path, cluster: object, user: object, document: object
) -> None:
    path = tmp_path / "config"
    whole = {
        "current-context": "a",
        "contexts": [{"name": "a", "context": {"cluster": "a", "user": "a"}}],
        "clusters": [{"name": "a", "cluster": cluster}],
        "users": [{"name": "a", "user": user}],
    }
    for content in (whole, document):
        path.write_text(json.dumps(content))
        with contextlib.suppress(ConfigError):
            load([path])


def test_nothing_configured(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--kubeconfig"):
        discover(None, {"HOME": str(tmp_path)})
    with pytest.raises(ConfigError, match="does not exist"):
        discover(tmp_path / "nope", {})


def test_in_cluster(tmp_path: Path) -> None:
    for name, text in {"token": "t\n", "ca.crt": "CA", "namespace": "kube-system"}.items():
        (tmp_path / name).write_text(text)
    endpoint = in_cluster({"KUBERNETES_SERVICE_HOST": "fd00::1", "KUBERNETES_SERVICE_PORT": "6443"}, tmp_path)
    assert endpoint.server == "https://[fd00::1]:6443"
    assert (endpoint.ca, endpoint.namespace, endpoint.token_file) == (
        b"CA",
        "kube-system",
        tmp_path / "token",
    )


def test_a_token_file_is_read_again_after_a_while(tmp_path: Path) -> None:
    clock = ManualClock()
    token = tmp_path / "token"
    credentials = Credentials(Endpoint(server="", token_file=token), clock)

    async def story() -> None:
        token.write_text("one")
        assert (await credentials.current()).authorization == "Bearer one"
        token.write_text("two")
        assert (await credentials.current()).authorization == "Bearer one"
        clock.advance(TOKEN_FILE_SECONDS)
        assert (await credentials.current()).authorization == "Bearer two"
        token.write_text("three")
        credentials.forget()
        assert (await credentials.current()).authorization == "Bearer three"
        token.write_text("")
        credentials.forget()
        with pytest.raises(ConfigError, match="is empty"):
            await credentials.current()

    asyncio.run(story())


def test_an_exec_plugin_runs_once_until_its_answer_expires(tmp_path: Path) -> None:
    clock = ManualClock(wall=1_700_000_000)
    plugin = tmp_path / "login"
    plugin.write_text(
        "#!/bin/sh\n"
        f'echo "$1 $A" >> {tmp_path}/runs\n'
        f'echo "$KUBERNETES_EXEC_INFO" > {tmp_path}/info\n'
        'echo \'{"apiVersion": "client.authentication.k8s.io/v1", "kind": "ExecCredential", "status": '
        '{"token": "fresh", "expirationTimestamp": "2023-11-14T22:23:20Z"}}\'\n'
    )
    plugin.chmod(0o755)
    spec = ExecSpec(command=str(plugin), args=("now",), env={"A": "b"}, provide_cluster_info=True)
    credentials = Credentials(Endpoint(server="https://x", exec_spec=spec), clock)

    async def story() -> None:
        assert (await credentials.current()).authorization == "Bearer fresh"
        await credentials.current()
        assert (tmp_path / "runs").read_text() == "now b\n"
        clock.advance(600)
        await credentials.current()
        assert (tmp_path / "runs").read_text() == "now b\nnow b\n"

    asyncio.run(story())
    assert '"server":"https://x"' in (tmp_path / "info").read_text()


@pytest.mark.parametrize(
    ("script", "sentence"),
    [("exit 3", "exit code 3"), ("echo no", "no ExecCredential"), ("echo '{}'", "neither a token")],
)
def test_a_failing_plugin_is_named(tmp_path: Path, script: str, sentence: str) -> None:
    plugin = tmp_path / "login"
    plugin.write_text(f"#!/bin/sh\n{script}\n")
    plugin.chmod(0o755)
    endpoint = Endpoint(server="", exec_spec=ExecSpec(command=str(plugin)))
    with pytest.raises(ConfigError, match=sentence):
        asyncio.run(Credentials(endpoint, ManualClock()).current())


def test_an_absent_plugin_gives_the_hint() -> None:
    endpoint = Endpoint(server="", exec_spec=ExecSpec(command="/no/such", install_hint="install it"))
    with pytest.raises(ConfigError, match="install it"):
        asyncio.run(Credentials(endpoint, ManualClock()).current())
