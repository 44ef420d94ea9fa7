"""Scaling on paper: what training on more devices costs, from a step's time and a network's speed.

Every replica computes its part of the batch as fast as alone; then the gradients, float32, are
summed over all replicas by rings (Patarasuk and Yuan, 2009): each of n members sends 2 (n - 1) / n
of the bytes, in 2 (n - 1) hops. Between hosts a GPU sends only its share of what its host's GPUs
have summed, all through one network card. Waiting for the slowest replica, reading pictures and
synchronised batch statistics are not in it, so that an efficiency is an upper bound.
"""

import dataclasses
import math
from collections.abc import Sequence

from efficientnet_tf.page import charts, document

BACKWARD = 2 / 3  # of a step: the backward pass has twice the forward's multiply-adds
_BATCHES = (4, 8, 16, 32, 64, 128, 256, 512)


@dataclasses.dataclass(frozen=True)
class Link:
    """What joins the members of a group, which may be hosts with several devices each.

    Attributes:
        members: of the group.
        bandwidth: bytes per second that a member sends, while it receives as many.
        latency: seconds of one hop.
        hops: of an all-reduce; None for a ring's 2 (members - 1).
    """

    members: int
    bandwidth: float
    latency: float
    hops: int | None = None

    def __post_init__(self) -> None:
        if self.members < 1 or self.bandwidth <= 0 or self.latency < 0:
            raise ValueError(
                "A link has at least 1 member, a bandwidth > 0 and a latency >= 0. Received:"
                f" {self}"
            )


@dataclasses.dataclass(frozen=True)
class Cluster:
    """Devices and how they are joined.

    Attributes:
        name: for people.
        links: from the devices of a host outwards.
        hosts: that prepare pictures.
        source: of the numbers.
    """

    name: str
    links: tuple[Link, ...]
    hosts: int
    source: str

    @property
    def replicas(self) -> int:
        """Number of devices."""
        return math.prod(link.members for link in self.links)


_NVLINK = Link(8, 300e9, 5e-6)
CLUSTERS = (
    Cluster(
        "8 GPUs, NVLink 3",
        (_NVLINK,),
        1,
        "NVIDIA A100 data sheet: 600 GB/s, half in each direction; 5 µs a hop are assumed",
    ),
    Cluster(
        "8 GPUs, PCIe 4.0 x16",
        (Link(8, 31.5e9, 10e-6),),
        1,
        "PCI Express 4.0: 16 GT/s, 16 lanes, 128/130 coding; 10 µs a hop are assumed",
    ),
    Cluster(
        "4 hosts of 8 GPUs, 100 Gb/s",
        (_NVLINK, Link(4, 12.5e9, 30e-6)),
        4,
        "one card of 100 Gb/s a host, NVLink 3 inside; 30 µs a hop are assumed",
    ),
    Cluster(
        "32 chips of a TPU v4 pod",
        # Rings along each side of 2 x 4 x 4 chips.
        (Link(32, 1.1e15 / 4096, 1e-6, hops=2 * (1 + 3 + 3)),),
        8,
        "cloud.google.com/tpu/docs/v4: all-reduce 1.1 PB/s a pod of 4096 chips, 4 chips a host;"
        " 1 µs a hop is assumed",
    ),
)


@dataclasses.dataclass(frozen=True)
class Assumptions:
    """What an estimate starts from.

    Attributes:
        step: seconds of a step on one device.
        batch: pictures of that step.
        gradient: bytes of the gradients.
        attained: share of the links' bandwidth that is reached.
        overlap: share of the all-reduce that runs beside the backward pass. 0 is what this
            package's loop does: it sums all gradients at once, when all are there.
        pictures_per_core: per second, that a processor core prepares.
        cores: of a host.
    """

    step: float
    batch: int
    gradient: int
    attained: float = 0.8
    overlap: float = 0.0
    pictures_per_core: float = 828.0
    cores: int = 64

    def __post_init__(self) -> None:
        positive = ("step", "batch", "gradient", "attained", "pictures_per_core", "cores")
        for name in positive:
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be > 0. Received: {name}={getattr(self, name)}")
        for name in ("attained", "overlap"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be in [0, 1]. Received: {getattr(self, name)}")


@dataclasses.dataclass(frozen=True)
class Estimate:
    """What a cluster reaches.

    Attributes:
        cluster: that it is of.
        all_reduce: seconds of summing the gradients.
        waiting: seconds of these in which nothing is computed.
        efficiency: pictures per second over `replicas` times those of one device, were there
            always pictures enough.
        pictures: per second, were there always pictures enough.
        cores_needed: of each host, to prepare as many.
        input_pictures: per second, that the hosts' cores prepare.
        fastest_fed: pictures per second of a device above which these cores are too few.
    """

    cluster: Cluster
    all_reduce: float
    waiting: float
    efficiency: float
    pictures: float
    cores_needed: int
    input_pictures: float
    fastest_fed: float

    @property
    def starved(self) -> bool:
        """Whether the input pipeline is the limit."""
        return self.input_pictures < self.pictures


def all_reduce(size: float, links: Sequence[Link], attained: float = 1.0) -> float:
    """Seconds of summing over all members of nested groups.

    Args:
        size: bytes that each device has.
        links: from the innermost group outwards.
        attained: share of the bandwidth that is reached.
    """
    seconds = 0.0
    for link in links:
        hops = 2 * (link.members - 1) if link.hops is None else link.hops
        sent = 2 * (link.members - 1) / link.members * size
        seconds += sent / (link.bandwidth * attained) + hops * link.latency
    return seconds


def estimate(cluster: Cluster, given: Assumptions) -> Estimate:
    """Derives what a cluster reaches where every device keeps its batch."""
    summing = all_reduce(given.gradient, cluster.links, given.attained)
    waiting = summing - min(given.overlap * summing, BACKWARD * given.step)
    efficiency = given.step / (given.step + waiting)
    pictures = efficiency * cluster.replicas * given.batch / given.step
    return Estimate(
        cluster=cluster,
        all_reduce=summing,
        waiting=waiting,
        efficiency=efficiency,
        pictures=pictures,
        cores_needed=math.ceil(pictures / cluster.hosts / given.pictures_per_core),
        input_pictures=cluster.hosts * given.cores * given.pictures_per_core,
        fastest_fed=cluster.hosts * given.cores * given.pictures_per_core / cluster.replicas,
    )


COLUMNS = (
    "cluster",
    "devices",
    "all-reduce, ms",
    "efficiency",
    "if all of it overlapped",
    "pictures/s",
    "cores per host to prepare them",
    "fastest device that is fed, pictures/s",
    "limit",
)


def rows(given: Assumptions, clusters: Sequence[Cluster] = CLUSTERS) -> list[list[str]]:
    """A row of `COLUMNS` for each cluster."""
    found = []
    for cluster in clusters:
        now = estimate(cluster, given)
        best = estimate(cluster, dataclasses.replace(given, overlap=1.0))
        found.append(
            [
                cluster.name,
                str(cluster.replicas),
                f"{1e3 * now.all_reduce:.2f}",
                f"{now.efficiency:.1%}",
                f"{best.efficiency:.1%}",
                f"{now.pictures:,.0f}",
                str(now.cores_needed),
                f"{now.fastest_fed:,.0f}",
                "input" if now.starved else "devices and network",
            ]
        )
    return found


def page(
    title: str, given: Assumptions, origin: str, clusters: Sequence[Cluster] = CLUSTERS
) -> str:
    """Makes the page: the table, a chart over the batch, and everything that was assumed.

    Args:
        title: e.g. "efficientnetv2-s at 300 px".
        given: what the estimates start from.
        origin: where the step's time is from.
        clusters: to compare.

    Returns:
        A whole HTML page, which needs no other file.
    """
    series = {
        cluster.name: [
            100 * estimate(cluster, _with_batch(given, batch)).efficiency for batch in _BATCHES
        ]
        for cluster in clusters
    }
    chart = charts.line_chart(
        "efficiency, %", "pictures per device and step", list(map(float, _BATCHES)), series
    )
    assumed: dict[str, object] = {
        "step of one device": f"{1e3 * given.step:.4g} ms for {given.batch} pictures: {origin}",
        "gradients": f"{given.gradient / 1e6:.1f} MB of float32, summed in every step",
        "bandwidth": f"{given.attained:.0%} of what the sources below say",
        "overlap with the backward pass": f"{given.overlap:.0%} of the all-reduce; at most"
        f" {BACKWARD:.0%} of a step",
        "input": f"{given.pictures_per_core:g} pictures per second and core, {given.cores} cores a"
        " host",
        "not in it": "waiting for the slowest device, reading pictures, synchronised batch"
        " statistics: efficiencies are upper bounds",
    }
    first = estimate(clusters[0], given)
    return document.document(
        f"Scaling on paper: {title}",
        f"{clusters[0].name}: {first.efficiency:.1%} at {given.batch} pictures per device",
        [
            document.section("Clusters", document.table(COLUMNS, rows(given, clusters))),
            document.section(
                "Smaller batches",
                document.paragraph(
                    "The all-reduce takes as long for a small batch as for a large one. The step's"
                    " time is taken to be in proportion to the batch."
                ),
                f'<div class="charts">{chart}</div>',
            ),
            document.section("Assumptions", document.mapping_table(assumed)),
            document.section(
                "Sources", document.mapping_table({y.name: y.source for y in clusters})
            ),
        ],
    )


def _with_batch(given: Assumptions, batch: int) -> Assumptions:
    return dataclasses.replace(given, batch=batch, step=given.step * batch / given.batch)
