"""Processes that give no sign of life any more, and what that means for the run."""

from __future__ import annotations

import time
from collections.abc import Sequence

from distbelief.errors import ProcessLostError
from distbelief.runtime.ray_actors import Ref
from distbelief.runtime.ray_errors import is_unreachable
from distbelief.runtime.ray_posts import Posts
from distbelief.runtime.ray_replicas import Replicas
from distbelief.runtime.shunned import Shunned
from distbelief.runtime.world import Happening, Post, ProcessEnd
from distbelief.transport.pulse import PulseServer


class Silence:
    """Finds them; their nodes are shunned for a while. Has one caller at a time.

    Args:
        pulses: Hears the processes.
        posts: Those that are no replica's.
        replicas: The others.
        shunned: Takes the nodes.
    """

    def __init__(
        self, pulses: PulseServer, posts: Posts, replicas: Replicas, shunned: Shunned
    ) -> None:
        self._pulses = pulses
        self._posts = posts
        self._replicas = replicas
        self._shunned = shunned
        self._nodes: dict[Post, str] = {}

    def note_node(self, post: Post, node: str) -> None:
        """A process runs on that node."""
        self._nodes[post] = node

    def forget(self, post: Post) -> None:
        """Whatever else comes of that process is ignored."""
        self._pulses.forget(str(post))
        self._nodes.pop(post, None)

    def of_the_coordinator(self) -> bool:
        """Whether a coordinator is silent: nobody should wait for its answer."""
        return any(silent.name.startswith("coordinator") for silent in self._pulses.late())

    def given_up(self) -> list[Happening]:
        """Those that fell silent since the last call, each as its end."""
        found: list[Happening] = []
        posts = self._posts.names()
        for silent in self._pulses.late():
            replicas = self._replicas.names()  # with one stage all others are given up
            name = silent.name
            self._pulses.forget(name)
            if name in posts:
                post = posts[name]
                self._shun(self._nodes.get(post))
                found.append(ProcessEnd(post, ProcessLostError(post.name, silent.what)))
            elif name in replicas:
                replica, stage = replicas[name], int(name.rpartition(" ")[2])
                self._shun(self._replicas.node_of(replica, stage))
                shunned = self._shunned.nodes(time.monotonic())
                end = self._replicas.give_up(replica, silent.what, shunned=shunned)
                if end is not None:
                    found.append(end)
        return found

    def shun_unreachable(self, over: Sequence[Ref]) -> frozenset[str]:
        """Shuns the nodes of processes that Ray cannot reach, as calls that are over tell.

        Returns:
            All nodes that are shunned now.
        """
        for call in filter(is_unreachable, over):
            post, seat = self._posts.holder(call), self._replicas.seat(call)
            if post is not None:
                self._shun(self._nodes.get(post))
            elif seat is not None:
                self._shun(self._replicas.node_of(*seat))
        return self._shunned.nodes(time.monotonic())

    def _shun(self, node: str | None) -> None:
        if node:
            self._shunned.add(node, time.monotonic())
