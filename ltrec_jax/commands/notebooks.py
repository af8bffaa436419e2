"""The command that opens the teaching notebooks of a checkout in JupyterLab. Out of scope: what is in them."""

import dataclasses
import importlib.util
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro

from ltrec_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Notebooks:
    """Open the notebooks that teach every stage in JupyterLab (extra `notebooks`).

    Further flags go to JupyterLab, such as --allow-root in a container.

    Example:  ltrec notebooks
              ltrec notebooks --no-browser --port 8890
    """

    directory: Annotated[Path | None, tyro.conf.arg(help="their folder; default: that of this checkout")] = None
    port: Annotated[int, tyro.conf.arg(help="where JupyterLab answers")] = 8888
    browser: Annotated[bool, tyro.conf.arg(help="open a browser window")] = True

    def run(self, settings: Sequence[str]) -> None:
        directory = self.directory or Path(__file__).parents[2] / "notebooks"
        if not any(directory.glob("01_*.ipynb")):
            raise UserError(
                f"There are no notebooks in {directory}: they belong to the source, not to the installed package. "
                "Run this in a checkout installed by `pip install -e '.[notebooks]'`, or name them with --directory."
            )
        if importlib.util.find_spec("jupyterlab") is None:
            raise UserError("JupyterLab is not installed. Install it: pip install 'ltrec-jax[notebooks]'")
        flags = [
            f"--notebook-dir={directory}",
            f"--port={self.port}",
            *([] if self.browser else ["--no-browser"]),
            *settings,
        ]
        # JupyterLab takes this process's place: Ctrl-C reaches it alone, and its exit code is ours.
        os.execv(sys.executable, [sys.executable, "-m", "jupyterlab", *flags])
