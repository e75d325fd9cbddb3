"""One cluster for all tests of this folder."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import two_nodes


@pytest.fixture(scope="session")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A Slurm of two nodes, which this process and all that it starts talk to."""
    if lacking := two_nodes.missing():
        pytest.fail(f"not installed: {', '.join(lacking)} (Debian's slurmctld, slurmd, slurm-client, munge)")
    with two_nodes.cluster(tmp_path_factory.mktemp("slurm")) as env, pytest.MonkeyPatch.context() as patch:
        for name in ("PATH", "SLURM_CONF"):
            patch.setenv(name, env[name])
        yield


@pytest.fixture(autouse=True)
def _alone(request: pytest.FixtureRequest) -> Iterator[None]:
    """Cancel every job after a test that needs Slurm, so that none is left for the next test."""
    if request.node.get_closest_marker("slurm") is None:
        yield
        return
    request.getfixturevalue("slurm")
    yield
    two_nodes.cancel_all(dict(os.environ))
