"""A Ray cluster of several unlike, labelled nodes on this one machine, called on loopback.

    python cluster/local.py --node name=a,cpus=2,labels=role:trainer --node cpus=2,resources=teacher_gpu:1 --dashboard

The head node comes by itself, with no CPUs, so that nothing but drivers and Serve's own actors run there and any other
node can be lost. CPUs, GPUs and kinds of GPU are what Ray is told, not what is there: two `gpus=1` nodes are good for
trying a placement, not for computing on it. Everything ends with Ctrl-C or SIGTERM.
"""

import argparse
import os
import shutil
import signal
import sys
import tempfile
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field

MIB = 1024 * 1024
# Loopback, and not 127.0.0.1: Ray replaces that in an address by the machine's outer one, where nobody listens, and the
# agent that runs jobs then waits for ever.
LOOPBACK = "127.0.0.2"


@dataclass(frozen=True)
class NodeSpec:
    """One node: CPUs and GPUs that it claims, kind of GPU, labels, custom resources, object store in MiB."""

    name: str
    cpus: float = 1
    gpus: float = 0
    accelerator: str | None = None
    labels: dict[str, str] = field(default_factory=dict)
    resources: dict[str, float] = field(default_factory=dict)
    store_mib: int = 150


def parse_node(text: str, name: str = "node") -> NodeSpec:
    """`cpus=2,gpus=1,accelerator=H100,labels=role:teacher/zone:a,resources=teacher_gpu:1` as a NodeSpec.

    Raises ValueError that names the faulty part.
    """
    readers = {
        "name": str,
        "cpus": float,
        "gpus": float,
        "accelerator": str,
        "labels": lambda value: dict(_pairs(value)),
        "resources": lambda value: {key: float(amount) for key, amount in _pairs(value)},
        "store_mib": int,
    }
    given = {"name": name}
    for part in text.split(","):
        key, equals, value = part.partition("=")
        if not equals or key not in readers:
            raise ValueError(f"'{part}' in node '{text}': write key=value with one of {', '.join(readers)}")
        try:
            given[key] = readers[key](value)
        except ValueError as error:
            raise ValueError(f"'{part}' in node '{text}': {error}") from None
    return NodeSpec(**given)


def _pairs(value: str) -> list[list[str]]:
    pairs = [part.split(":") for part in value.split("/")]
    if any(len(pair) != 2 for pair in pairs):
        raise ValueError("write name:value, several of them with / between")
    return pairs


@dataclass
class LocalCluster:
    """A running cluster: `address` for ray.init, `jobs_address` for job submission (None without the dashboard).

    `folder` holds the files of all nodes, until the end.
    """

    cluster: object
    nodes: dict[str, object]
    jobs_address: str | None
    folder: str

    @property
    def address(self) -> str:
        return self.cluster.address

    def kill(self, name: str) -> None:
        """Kill every process of the node `name` at once, as a lost machine would be."""
        self.cluster.remove_node(self.nodes.pop(name), allow_graceful=False)

    def add(self, spec: NodeSpec) -> None:
        """Start one more node and wait until the cluster knows it."""
        if spec.name in self.nodes:
            raise ValueError(f"there is a node '{spec.name}' already: give each its own name")
        kind = {f"accelerator_type:{spec.accelerator}": 1} if spec.accelerator else {}
        self.nodes[spec.name] = self.cluster.add_node(
            node_name=spec.name,
            node_ip_address=LOOPBACK,
            num_cpus=spec.cpus,
            num_gpus=spec.gpus,
            labels=spec.labels,
            resources={**spec.resources, **kind},
            object_store_memory=spec.store_mib * MIB,
            # Its own, as on a machine of its own: with a common one, a node that fetches a job's working directory
            # deletes it for a moment under the feet of the others.
            temp_dir=tempfile.mkdtemp(prefix="n-", dir=self.folder),
        )


@contextmanager
def local_cluster(
    specs: list[NodeSpec],
    dashboard: bool = False,
    dashboard_port: int = 8265,
    auth: str = "disabled",
    system_config=None,
):
    """Start a head and one node for each spec; end all of it on leaving. Yields a LocalCluster.

    `auth` is RAY_AUTH_MODE (`disabled` or `token`); `system_config` goes to Ray (health check periods, for one). The
    settings are in the environment of this process, where a client finds them, until the end. Ray must not be running
    in this process.
    """
    folder = tempfile.mkdtemp(prefix="drc-", dir="/tmp")  # short: Ray's sockets lie below it, and paths end at 107
    wanted = {
        "RAY_AUTH_MODE": auth,
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_TMPDIR": folder,
        # A job's entrypoint says `python`: it is to be this one, with this environment's packages.
        "PATH": os.pathsep.join([os.path.dirname(sys.executable), os.environ.get("PATH", os.defpath)]),
    }
    before = {key: os.environ.get(key) for key in wanted}
    os.environ.update(wanted)
    from ray.cluster_utils import Cluster  # after the settings: Ray reads them when it is imported

    cluster = None
    try:
        cluster = Cluster(shutdown_at_exit=True)
        head = cluster.add_node(
            node_name="head",
            node_ip_address=LOOPBACK,
            num_cpus=0,
            labels={"role": "head"},
            object_store_memory=150 * MIB,
            include_dashboard=dashboard,
            dashboard_host="127.0.0.1",
            dashboard_port=dashboard_port,
            dashboard_agent_listen_port=0,  # any; the default is one fixed port, which a second cluster cannot have
            **({"_system_config": system_config} if system_config else {}),
        )
        local = LocalCluster(cluster, {}, f"http://{head.webui_url}" if dashboard else None, folder)
        for spec in specs:
            local.add(spec)
        yield local
    finally:
        if cluster is not None:
            cluster.shutdown()
        for key, value in before.items():
            os.environ.pop(key) if value is None else os.environ.update({key: value})
        shutil.rmtree(folder, ignore_errors=True)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--node", action="append", required=True, metavar="KEY=VALUE,...", help="one node; repeat")
    parser.add_argument("--dashboard", action="store_true", help="with the dashboard, which takes jobs")
    parser.add_argument("--dashboard-port", type=int, default=8265)
    parser.add_argument("--auth", choices=("disabled", "token"), default="disabled", help="RAY_AUTH_MODE")
    given = parser.parse_args(arguments)
    try:
        specs = [parse_node(text, f"node-{index}") for index, text in enumerate(given.node)]
    except ValueError as error:
        parser.error(str(error))
    with local_cluster(specs, given.dashboard, given.dashboard_port, given.auth) as cluster:
        stop = threading.Event()
        # After the start, for Ray puts its own handler in place with every node.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: stop.set())
        print(f"address       {cluster.address}")
        for spec in specs:
            print(f"node          {spec}")
        print(f"connect       RAY_AUTH_MODE={given.auth} RAY_ADDRESS={cluster.address} python ...")
        if cluster.jobs_address:
            print(f"jobs address  {cluster.jobs_address}")
            print(
                f"submit        RAY_AUTH_MODE={given.auth} dipp-ray submit --address {cluster.jobs_address} "
                "-- python jobs/align.py CONFIG"
            )
        print("Ctrl-C ends it.", flush=True)
        stop.wait()
        print("ending", flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
