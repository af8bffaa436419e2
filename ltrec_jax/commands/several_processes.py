"""The flags by which a command joins other processes that run it too."""

import dataclasses
from typing import Annotated

import tyro


@dataclasses.dataclass(frozen=True)
class SeveralProcesses:
    """One command in several processes, on one machine or many."""

    coordinator: Annotated[str, tyro.conf.arg(help="several processes: HOST:PORT of process 0; auto: SLURM, GKE")] = ""
    num_processes: Annotated[int | None, tyro.conf.arg(help="how many processes")] = None
    process_id: Annotated[int | None, tyro.conf.arg(help="which one this is, from 0")] = None

    def connect(self) -> bool:
        """Join the others, before anything asks JAX for a device. Whether this is the process that reports."""
        from ltrec_jax import processes

        processes.connect(self.coordinator, self.num_processes, self.process_id)
        return processes.is_first()


ALONE = SeveralProcesses()
