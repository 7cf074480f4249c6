"""All of Hubble in one agent: the store, what fills it, what reads it, and the doors to it.

    kernel's rings ─► pump ─► store ─┬─► observer ─┐
                                     │   peers    ─┼─► doors (unix socket)
    tables ─► directory ─────────────┘   health   ─┘

What reads flows as they come is started here, too, each with a cursor of its own.
"""

from __future__ import annotations

from contextlib import AsyncExitStack

from cilia import __version__
from cilia.apps.agent.directory import TableDirectory
from cilia.apps.agent.errors import StartError
from cilia.apps.agent.flows import FlowPump
from cilia.apps.agent.kernel import NodeKernel
from cilia.apps.agent.metrics import HubbleNumbers
from cilia.apps.agent.settings import AgentSettings
from cilia.apps.agent.socket_owners import SocketOwners
from cilia.dataplane.order import KernelState
from cilia.hubble.convert import NodeFacts, file_names
from cilia.hubble.health import Health
from cilia.hubble.observer import Observer, ObserverSettings
from cilia.hubble.peer import Peer, Peers
from cilia.hubble.rpc.server import Server
from cilia.hubble.store import FlowStore, LossSource
from cilia.kit.clock import Clock
from cilia.schema import Desired, Inputs


class Observability:
    """Hubble of one agent; made once the kernel's state is followed."""

    def __init__(
        self,
        settings: AgentSettings,
        inputs: Inputs,
        desired: Desired,
        kernel: NodeKernel,
        state: KernelState,
        clock: Clock,
    ) -> None:
        self._settings = settings
        self._clock = clock
        self._kernel = kernel
        self._owners = SocketOwners(inputs, desired, settings.cgroup_root)
        directory = TableDirectory(
            inputs, desired, state.service_maps, cluster=settings.cluster_name, device=kernel.device_name
        )
        self.store = FlowStore(kernel.event_dtype, directory, capacity=settings.hubble_capacity)
        self._name = f"{settings.cluster_name}/{settings.node_name}"
        self._facts = NodeFacts(name=self._name, files=file_names(kernel.source_files))

    async def open(self, stack: AsyncExitStack) -> None:
        """Answer clients until the stack closes. Raises StartError."""
        settings = self._settings
        observer = Observer(self.store, self._facts, ObserverSettings(version=__version__), self._clock)
        peers = Peers([Peer(self._name, f"unix://{settings.hubble_socket}")])
        health = Health(["observer.Observer", "peer.Peer"])
        server = Server({**observer.methods(), **peers.methods(), **health.methods()})
        try:
            await server.listen_unix(settings.hubble_socket)
        except OSError as error:
            raise StartError(
                f"the Hubble socket {settings.hubble_socket} can't be opened ({error.strerror or error}): "
                "stop the agent that serves it, or choose another --hubble-socket"
            ) from error
        stack.push_async_callback(server.close)

    def read(self, stack: AsyncExitStack) -> None:
        """Take the kernel's events until the stack closes."""
        if self._settings.events:
            reader = self._kernel.reader(FlowPump(self.store, self._owners).take)
            reader.start()
            stack.callback(reader.stop)

    def numbers(self) -> HubbleNumbers:
        """For a scrape of the agent."""
        lost = {source.name.lower(): self.store.metrics.lost.get(source, 0) for source in LossSource}
        return HubbleNumbers(flows=self.store.head, lost=lost)
