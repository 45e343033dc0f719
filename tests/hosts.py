"""Virtual hosts for tests: network namespaces of benchmarks/virtual_cluster.sh, up for the length of a `with`."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

from tests.need import need
from tests.processes import ROOT

CLUSTER = str(ROOT / "benchmarks" / "virtual_cluster.sh")


@contextmanager
def virtual_hosts(count: int, rate: str) -> Iterator[list[str]]:
    """`count` hosts whose links carry `rate`, as 1gbit; the command that runs ranks on them, to be followed by RANKS PROGRAM..."""
    able = os.getuid() == 0 and shutil.which("ip") is not None
    need("netns", able, "virtual hosts need root and iproute2: apt-get install iproute2")
    subprocess.run([CLUSTER, "down"], check=True, timeout=60)
    subprocess.run([CLUSTER, "up", str(count), rate], check=True, timeout=60)
    try:
        yield [CLUSTER, "run"]
    finally:
        subprocess.run([CLUSTER, "down"], check=True, timeout=60)
