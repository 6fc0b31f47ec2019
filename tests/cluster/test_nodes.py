"""Several nodes, each with its own raylet, on this machine: joined by address or through the client server, and lost in mid-work."""

from __future__ import annotations

import logging
import os
import socket
from pathlib import Path

import pytest

pytest.importorskip("ray", reason="work on a cluster needs the extra `cluster`")
import ray
from ray.cluster_utils import Cluster as Nodes

from unmask.cluster.ray import Cluster
from unmask.data import pack as packing
from unmask.data.pack import pack
from unmask.data.tokenizer import train_tokenizer

from ..conftest import sentences

pytestmark = pytest.mark.slow
STORE_BYTES = 80 * 2**20


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@pytest.fixture(scope="module")
def nodes():
    """A head with one CPU, and the address at which it serves clients."""
    for name, value in (("RAY_worker_niceness", "0"), ("RAY_CLIENT_SERVER_CHECK_CHANNEL_TIMEOUT_S", "300")):  # a machine may be busy
        os.environ.setdefault(name, value)
    port = free_port()
    of_head = {"num_cpus": 1, "object_store_memory": STORE_BYTES, "ray_client_server_port": port}
    made = Nodes(head_node_args=of_head, initialize_head=True)
    yield made, f"ray://127.0.0.1:{port}"
    made.shutdown()


@pytest.fixture(scope="module")
def packed(tmp_path_factory, sentences_file):
    folder = tmp_path_factory.mktemp("packed")
    tokenizer = train_tokenizer(sentences(100), kind="wordpiece", vocab_size=300)
    pack(sentences_file, folder / "here", tokenizer=tokenizer, held_out=0.1)
    return folder / "here", tokenizer


def stores(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.suffix in (".arrow", ".jsonl")}


def test_through_the_client_server(nodes, packed, sentences_file, tmp_path):
    address = nodes[1]
    with Cluster(address) as cluster:
        pack(sentences_file, tmp_path / "out", tokenizer=packed[1], held_out=0.1, on=cluster)
        assert str(cluster) == f"{address}: 1 node, 1 CPUs, 0 GPUs"
    assert stores(tmp_path / "out") == stores(packed[0])
    assert not ray.is_initialized()


def test_a_node_that_is_lost_costs_nothing_but_time(nodes, packed, sentences_file, tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.WARNING)
    monkeypatch.setattr(packing, "BATCH_DOCUMENTS", 4)
    local = nodes[0]
    second = local.add_node(num_cpus=1, object_store_memory=STORE_BYTES)
    alive = [True]

    def lose(stage, num_documents, num_bytes):
        team = cluster._team
        if alive and len({member.facts["node"] for member in team.members}) == 2:
            alive.clear()
            local.remove_node(second, allow_graceful=False)

    with Cluster(local.address) as cluster:
        assert str(cluster).endswith("2 nodes, 2 CPUs, 0 GPUs")
        pack(sentences_file, tmp_path / "out", tokenizer=packed[1], held_out=0.1, on=cluster, progress=lose)
    assert not alive and any("is lost" in record.getMessage() for record in caplog.records)
    assert stores(tmp_path / "out") == stores(packed[0])
