"""One cluster for each module, an empty queue for each test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.slurm.cluster import Cluster, cluster


@pytest.fixture(scope="module")
def module_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with cluster(Path(tmp_path_factory.mktemp("cluster"))) as found:
        yield found


@pytest.fixture
def slurm(module_cluster: Cluster) -> Iterator[Cluster]:
    yield module_cluster
    module_cluster.cancel_all()
