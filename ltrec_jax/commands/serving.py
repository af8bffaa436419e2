"""Commands that use a run: recommend, serve, export. What a command needs is imported when it runs."""

import dataclasses
import logging
import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from ltrec_jax.errors import UserError

if TYPE_CHECKING:
    from ltrec_jax.bundle import Bundle
    from ltrec_jax.serve.index import Index

TOKEN_VARIABLE = "LTREC_TOKEN"


@dataclasses.dataclass(frozen=True)
class Recommend:
    """Recommend items that somebody has not seen, with the liked items they resemble.

    For a known user, for somebody new by what they like, by a text, or for everybody into a file.

    Example:  ltrec recommend runs/quickstart --user 42 -k 5
              ltrec recommend runs/quickstart --liked "Toy Story (1995)" --liked "Star Wars"
    """

    run_directory: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN", help="run directory")]
    user: Annotated[str, tyro.conf.arg(help="external user id")] = ""
    liked: Annotated[
        tyro.conf.UseAppendAction[tuple[str, ...]], tyro.conf.arg(help="an item liked: its id or text; give several")
    ] = ()
    text: Annotated[str, tyro.conf.arg(help="what somebody is looking for")] = ""
    all_users: Annotated[bool, tyro.conf.arg(help="lists for everybody, written to --out")] = False
    out: Annotated[Path | None, tyro.conf.arg(help="Parquet file for --all-users")] = None
    k: Annotated[int, tyro.conf.arg(aliases=["-k"], help="how many")] = 10
    tail: Annotated[
        float,
        tyro.conf.arg(
            help="0..1; models solved for lists: scores times n^-TAIL of n training events, the dial of the report; "
            "others: 1 shows the rarest of the good candidates first"
        ),
    ] = 0.0
    cold_gain: Annotated[
        float,
        tyro.conf.arg(help="0..10; models solved for lists: scores of items without training events times this"),
    ] = 1.0

    def run(self, settings: Sequence[str]) -> None:
        if sum((bool(self.user), bool(self.liked), bool(self.text), self.all_users)) != 1:
            raise UserError("Say for whom: one of --user ID, --liked ITEM (several), --text TEXT or --all-users.")
        if self.all_users and self.out is None:
            raise UserError("--all-users needs a file: --out recs.parquet")
        from rich.console import Console

        from ltrec_jax import experiment
        from ltrec_jax.quickstart import recommendations_table
        from ltrec_jax.serve.batch import recommend_all
        from ltrec_jax.serve.service import Query, Service

        _, bundle = experiment.open_run(self.run_directory)
        if self.out is not None and self.all_users:
            if self.tail or self.cold_gain != 1.0:
                name = "--tail" if self.tail else "--cold-gain"
                raise UserError(f"{name} has no place beside --all-users: the file holds the lists by score.")
            rows = recommend_all(bundle, self.out, self.k)
            print(f"{rows:,} recommendations for {bundle.num_users:,} users are in {self.out}")
            return
        service = Service(bundle)
        try:
            query = Query(
                user=self.user or None,
                liked=[service.items.named(name) for name in self.liked],
                text=self.text or None,
                k=self.k,
                tail=self.tail,
                cold_gain=self.cold_gain,
            )
            whom = self.user or self.text or "somebody who likes " + "; ".join(self.liked)
            Console().print(recommendations_table(whom, service.recommend([query])[0]))
        finally:
            service.close()


@dataclasses.dataclass(frozen=True)
class Export:
    """Write a run for other systems: the encoder as a jax.export program, vectors as npy and Parquet, FAISS.

    Example:  ltrec export runs/quickstart --out exported --faiss hnsw
    """

    run_directory: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN", help="run directory")]
    out: Annotated[Path, tyro.conf.arg(help="directory to make")]
    faiss: Annotated[
        Literal["no", "hnsw", "ivf"], tyro.conf.arg(help="also a FAISS index of this kind (extra: faiss)")
    ] = "no"

    def run(self, settings: Sequence[str]) -> None:
        from ltrec_jax import experiment
        from ltrec_jax.serve.export import export_bundle

        _, bundle = experiment.open_run(self.run_directory)
        export_bundle(bundle, self.out, faiss=None if self.faiss == "no" else self.faiss)
        print(f"{self.out / 'export.json'} says what is there and how to use it.")


@dataclasses.dataclass(frozen=True)
class Serve:
    """Answer over HTTP: recommendations, search, new items, feedback, and a page to try them.

    A token in the environment variable LTREC_TOKEN is asked of every client. SIGHUP swaps in the run's bundle as it is
    then, without a failed request.

    Example:  ltrec serve runs/quickstart --port 8000
    """

    run_directory: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN", help="run directory")]
    host: Annotated[str, tyro.conf.arg(help="address to listen on; the default is reached from this machine only")] = (
        "127.0.0.1"
    )
    port: Annotated[int, tyro.conf.arg(help="port to listen on")] = 8000
    log: Annotated[Path | None, tyro.conf.arg(help="file of items and feedback; default: RUN/serve.sqlite")] = None
    index: Annotated[
        Literal["float32", "bfloat16", "int8", "hnsw", "ivf"], tyro.conf.arg(help="how items are searched")
    ] = "float32"
    rate: Annotated[float, tyro.conf.arg(help="requests per second that one client may send; 0: any")] = 0.0
    log_requests: Annotated[
        bool, tyro.conf.arg(help="a line of JSON per request on stderr: route, status, ms; no ids, no texts")
    ] = False

    def run(self, settings: Sequence[str]) -> None:
        try:
            import uvicorn

            from ltrec_jax.serve import http
        except ModuleNotFoundError as error:
            if (error.name or "").startswith("ltrec_jax"):
                raise
            raise UserError(f"Serving needs more packages ({error.name}): pip install 'ltrec-jax[serve]'.") from error
        from ltrec_jax import experiment, parallel, storage
        from ltrec_jax.serve.guard import LOG, Limits
        from ltrec_jax.serve.journal import Journal
        from ltrec_jax.serve.service import Service

        parallel.enable_compile_cache(str(storage.cache_directory() / "compiled"))
        _, bundle = experiment.open_run(self.run_directory)
        journal = Journal(self.log or self.run_directory / "serve.sqlite")

        def open_service() -> Service:
            return Service(bundle, journal=journal, index=self._index(bundle))

        def swap(service: Service) -> None:
            _, newer = experiment.open_run(self.run_directory)
            service.swap(newer, self._index(newer))

        app = http.make_app(
            open_service,
            swap=swap,
            limits=Limits(requests_per_second=self.rate),
            token=os.environ.get(TOKEN_VARIABLE) or None,
        )
        LOG.addHandler(logging.StreamHandler())
        LOG.propagate = False
        LOG.setLevel(logging.INFO if self.log_requests else logging.WARNING)
        # uvicorn finishes its requests, then raises the signal again: by then there is nothing left to stop.
        signal.signal(signal.SIGTERM, lambda *_: None)
        print(f"Serving {self.run_directory} at http://{self.host}:{self.port} (stop with Ctrl+C)")
        uvicorn.run(app, host=self.host, port=self.port, log_level="warning", access_log=False)

    def _index(self, bundle: "Bundle") -> "Index":
        """The index asked for; what it loses is printed and left in RUN/index.json."""
        from ltrec_jax import storage
        from ltrec_jax.data.popularity import GROUPS
        from ltrec_jax.serve.faiss_index import faiss_index
        from ltrec_jax.serve.index import agreement, exact_index

        exact = exact_index(bundle.vectors)
        if self.index == "float32":
            return exact
        if self.index == "hnsw" or self.index == "ivf":
            found: Index = faiss_index(bundle.vectors, self.index)
        else:
            found = exact_index(bundle.vectors, self.index)
        kept = agreement(found, exact, bundle.vectors, bundle.group, GROUPS)
        storage.write_json(self.run_directory / "index.json", {"index": self.index, "found_of_exact_20": kept})
        print("Share of the exact top 20 that this index finds: " + ", ".join(f"{n} {v:.1%}" for n, v in kept.items()))
        return found
