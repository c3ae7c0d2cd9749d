"""Networks that a suite spares an experiment."""

from collections.abc import Sequence

from pipeline.findings import Findings
from pipeline.types import Network

__all__ = ["spared"]


def spared(network: Network, networks: Sequence[str] | None) -> Findings | None:
    """What an experiment returns on a network that the suite spends no time on; None where it does.

    Args:
        network: the one that the stage runs on.
        networks: names of those of the suite to measure; None is all.
    """
    if networks is None or network.name in networks:
        return None
    return Findings(notes=[f"Not measured on {network.name}: this suite takes {', '.join(networks) or 'no network'}."])
