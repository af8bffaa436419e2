"""Commands that deploy a run: serve. What a command needs is imported when it runs."""

import dataclasses
import os
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
class Serve:
    """Answer over HTTP: recommendations, search, new items, feedback, and a page to try them.

    A token in the environment variable LTREC_TOKEN is asked of every client.

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

    def run(self, settings: Sequence[str]) -> None:
        try:
            import uvicorn

            from ltrec_jax.serve import http
        except ModuleNotFoundError as error:
            if (error.name or "").startswith("ltrec_jax"):
                raise
            raise UserError(f"Serving needs more packages ({error.name}): pip install 'ltrec-jax[serve]'.") from error
        from ltrec_jax import experiment, parallel, storage
        from ltrec_jax.serve.guard import Limits
        from ltrec_jax.serve.service import Service

        parallel.enable_compile_cache(str(storage.cache_directory() / "compiled"))
        _, bundle = experiment.open_run(self.run_directory)
        journal = self.log or self.run_directory / "serve.sqlite"

        def open_service() -> Service:
            return Service(bundle, journal_path=journal, index=_index(bundle, self.index))

        app = http.make_app(
            open_service,
            limits=Limits(requests_per_second=self.rate),
            token=os.environ.get(TOKEN_VARIABLE) or None,
        )
        print(f"Serving {self.run_directory} at http://{self.host}:{self.port} (stop with Ctrl+C)")
        uvicorn.run(app, host=self.host, port=self.port, log_level="warning", access_log=False)


def _index(bundle: "Bundle", kind: str) -> "Index":
    from ltrec_jax.data.popularity import GROUPS
    from ltrec_jax.serve.faiss_index import faiss_index
    from ltrec_jax.serve.index import agreement, exact_index

    exact = exact_index(bundle.vectors)
    if kind == "float32":
        return exact
    if kind == "hnsw" or kind == "ivf":
        found: Index = faiss_index(bundle.vectors, kind)
    else:
        found = exact_index(bundle.vectors, "bfloat16" if kind == "bfloat16" else "int8")
    kept = agreement(found, exact, bundle.vectors, bundle.group, GROUPS)
    print("Share of the exact top 20 that this index finds: " + ", ".join(f"{n} {v:.1%}" for n, v in kept.items()))
    return found
