"""Train on the machines of a Ray cluster: Ray finds them, torchrun starts their processes.

    python examples/launch/on_ray.py --nodes 2 --devices 8 -- trainer=fsdp hydra.run.dir=outputs/a

What follows ``--`` are overrides of ``train.py``; folder and files are on a disk that all machines
have. Where a machine is lost the others end, and the same command with ``ckpt_path=`` goes on.
"""

import argparse
import os
import socket
import subprocess
import sys

import ray
from ray.util.placement_group import placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy


def address() -> tuple[str, int]:
    """Of this machine, and a port that is free there."""
    with socket.socket() as free:
        free.bind(("", 0))
        return ray.util.get_node_ip_address(), free.getsockname()[1]


def train(node: int, nodes: int, devices: int, main: tuple[str, int], told: list[str]) -> int:
    """One machine's processes; returns torchrun's exit status."""
    host, port = main
    start = [sys.executable, "-m", "torch.distributed.run", f"--nnodes={nodes}"]
    start += [f"--node-rank={node}", f"--nproc-per-node={devices}"]
    start += [f"--master-addr={host}", f"--master-port={port}", "train.py", *told]
    start += [f"trainer.num_nodes={nodes}", f"trainer.devices={devices}"]
    return subprocess.run(start, cwd=os.environ["STARTED_IN"], check=False).returncode


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nodes", type=int, required=True)
    parser.add_argument("--devices", type=int, required=True, help="processes a machine")
    parser.add_argument("--cpus", type=int, default=1, help="processors a process")
    parser.add_argument("--no-gpus", action="store_true", help="the devices are processors")
    parser.add_argument("--anywhere", action="store_true", help="nodes may share a machine")
    parser.add_argument("told", nargs="+", help="overrides of train.py")
    given = parser.parse_args()
    ray.init(runtime_env={"env_vars": {"STARTED_IN": os.getcwd()}})
    bundle = {"CPU": given.cpus * given.devices} | ({} if given.no_gpus else {"GPU": given.devices})
    group = placement_group([bundle] * given.nodes, "PACK" if given.anywhere else "STRICT_SPREAD")
    ray.get(group.ready())

    def there(node: int) -> PlacementGroupSchedulingStrategy:
        return PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=node)

    first = ray.remote(address).options(num_cpus=0, scheduling_strategy=there(0)).remote()
    rest = {"num_cpus": bundle["CPU"], "num_gpus": bundle.get("GPU", 0), "max_retries": 0}
    tasks = [
        ray.remote(train)
        .options(scheduling_strategy=there(node), **rest)
        .remote(node, given.nodes, given.devices, first, given.told)
        for node in range(given.nodes)
    ]
    return max(ray.get(tasks))


if __name__ == "__main__":
    sys.exit(main())
