"""The command that pretrains an encoder on the texts of a catalogue."""

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import tyro

from ltrec_jax.commands.several_processes import ALONE, SeveralProcesses
from ltrec_jax.errors import UserError

if TYPE_CHECKING:
    from rich.table import Table

    from ltrec_jax.data.dataset import Dataset
    from ltrec_jax.text.corpus import Corpus


@dataclasses.dataclass(frozen=True)
class Pretrain:
    """Train an encoder to guess masked words of your catalogue's texts, from a checkpoint or from scratch.

    Every setting that --print-config shows is a flag too. The default rate spares sentence
    vectors; a plain BERT takes --learning-rate 5e-5.

    Example:  ltrec pretrain --data movielens-1m --out runs/films
              ltrec pretrain --texts plots.csv --text-column plot --from-scratch --learning-rate 5e-4 --out runs/small
    """

    data: Annotated[str, tyro.conf.arg(help="known dataset, or a directory made by `ltrec data prepare`")] = ""
    texts: Annotated[Path | None, tyro.conf.arg(help="or a table (.parquet, .csv, .tsv), or lines of a .txt")] = None
    text_column: Annotated[str, tyro.conf.arg(help="the table's column of texts (or give a --template)")] = "text"
    out: Annotated[Path, tyro.conf.arg(help="run directory to make")] = Path("runs/pretrain")
    resume: Annotated[bool, tyro.conf.arg(help="go on from the newest checkpoint in --out")] = False
    cold_items: Annotated[
        bool, tyro.conf.arg(help="also: what it does for unrated items, beside the original (minutes; needs --data)")
    ] = False
    print_config: Annotated[bool, tyro.conf.arg(help="write the settings, commented, and stop")] = False
    together: Annotated[SeveralProcesses, tyro.conf.arg(name="")] = ALONE

    def run(self, settings: Sequence[str]) -> None:
        from ltrec_jax import plain_settings
        from ltrec_jax.train.pretrain_config import PretrainConfig

        chosen = tyro.cli(PretrainConfig, args=list(settings), prog="ltrec pretrain")
        if self.print_config:
            sys.stdout.write(plain_settings.to_toml(cast(Any, chosen)))
            return
        if bool(self.data) == (self.texts is not None):
            raise UserError("Name the texts by one of --data (a dataset) and --texts (a table or lines of text).")
        from rich.console import Console

        from ltrec_jax import parallel, storage
        from ltrec_jax.train.pretraining import pretrain

        reports = self.together.connect()
        parallel.enable_compile_cache(str(storage.cache_directory() / "compiled"))
        parallel.warn_about_unused_accelerator()
        source = self._source(chosen.template)
        made = pretrain(source, chosen, self.out, resume=self.resume, cold=self.cold_items)
        if not reports:
            return
        console = Console(highlight=False)
        console.print(held_out_table(made.report))
        if made.report["cold_items"]:
            console.print(cold_items_table(made.report["cold_items"]))
        console.print("\n".join(_remarks(made.report)), soft_wrap=True)
        console.print(
            f"The encoder is {made.directory}. Next: ltrec train --encoder.name {made.directory}", soft_wrap=True
        )

    def _source(self, template: str) -> "Dataset | Corpus":
        from ltrec_jax import experiment
        from ltrec_jax.text import corpus

        if self.texts is None:
            # Ratings are read only where they are used.
            return experiment.load(self.data) if self.cold_items else experiment.load_texts(self.data, template)
        if self.texts.suffix.lower() == ".txt":
            return corpus.from_lines(self.texts)
        return corpus.from_file(self.texts, "", self.text_column, template)


def held_out_table(report: Mapping[str, Any]) -> "Table":
    """Loss, pseudo-perplexity and accuracy on the held-out texts: at the start, head alone, pretrained."""
    texts, figures = report["texts"], report["held_out"]
    title = f"{texts['held_out']:,} held-out texts, {figures['pretrain']['masked_tokens']:,} masked tokens"
    table = _table(title, "", "loss", "pseudo-perplexity", "right")
    for name, label in (("before", "before"), ("head_only", "head alone"), ("pretrain", "pretrained")):
        one = figures[name]
        table.add_row(label, f"{one['loss']:.3f}", f"{one['pseudo_perplexity']:,.1f}", f"{one['accuracy']:.1%}")
    return table


def cold_items_table(cold: Mapping[str, Any]) -> "Table":
    """RMSE and nDCG@10 on unrated items with the original encoder, if there is one, and the pretrained; the verdict."""
    table = _table(f"{cold['items']:,} items without ratings, frozen text", "", "RMSE", "nDCG@10")
    for name in ("original", "pretrained"):
        if cold[name]:
            table.add_row(name, *(f"{cold[name][metric]['value']:.4f}" for metric in ("rmse", "ndcg@10")))
    if cold["difference"]:
        table.add_row("pretrained is", *(cold["difference"][metric]["verdict"] for metric in ("rmse", "ndcg@10")))
    return table


def _table(title: str, *names: str) -> "Table":
    from rich import box
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=box.SIMPLE)
    for number, name in enumerate(names):
        table.add_column(name, justify="right" if number else "left")
    return table


def _remarks(report: Mapping[str, Any]) -> list[str]:
    share, texts = report["below_head_only"], report["texts"]
    remarks = [
        f"The loss is {abs(share):.0%} {'below' if share > 0 else 'ABOVE'} that of the head alone after as many steps; "
        f"vectors of texts have a mean cosine of {report['vector_cosine']:.2f} with the original ones."
    ]
    if report["cold_items"] and not report["cold_items"]["original"]:
        remarks.append("From scratch there is no original encoder to compare with on items without ratings.")
    if texts["truncated"]:
        remarks.append(f"{texts['truncated']:,} texts were cut at {texts['max_length']} tokens (--max-length).")
    return remarks
