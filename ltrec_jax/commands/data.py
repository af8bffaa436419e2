"""Commands of the data stage: what there is, fetch, prepare, describe, anonymise."""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Annotated

import tyro

from ltrec_jax.errors import unknown_name


@dataclasses.dataclass(frozen=True)
class List:
    """List the datasets known by name, with their size, licence, citation and home.

    Example:  ltrec data list --domain films
    """

    domain: Annotated[str, tyro.conf.arg(help="only this domain, such as films, music, news, e-commerce, books")] = ""

    def run(self, settings: Sequence[str]) -> None:
        from rich.console import Console
        from rich.padding import Padding

        from ltrec_jax.data import sources

        known = sources.available()
        domains = sorted({source.domain for source in known})
        if self.domain and self.domain not in domains:
            raise unknown_name("domain", self.domain, domains)
        console = Console(highlight=False)
        chosen = [source for source in known if self.domain in ("", source.domain)]
        width = max(len(source.name) for source in chosen)
        for (domain, licence, citation), family in itertools.groupby(
            chosen, key=lambda source: (source.domain, source.licence, source.citation)
        ):
            console.print(f"[bold]{domain}[/bold]")
            members = list(family)
            for source in members:
                console.print(f"  {source.name:<{width}}  {source.size}", soft_wrap=True)
            homes = ", ".join(dict.fromkeys(source.url for source in members))
            for label, text in (("licence", licence), ("cite", citation), ("home", homes)):
                console.print(Padding(f"[dim]{label}: {text}[/dim]", (0, 0, 0, 4)))
            console.print()


@dataclasses.dataclass(frozen=True)
class Fetch:
    """Fetch a known dataset into the cache and prepare it; a second call needs no network.

    Example:  ltrec data fetch movielens-1m
    """

    name: Annotated[
        tyro.conf.Positional[str], tyro.conf.arg(metavar="NAME", help="a name that `ltrec data list` shows")
    ]

    def run(self, settings: Sequence[str]) -> None:
        from ltrec_jax.data import sources

        dataset = sources.load(self.name)
        print(
            f"{dataset.name}: {len(dataset.interactions):,} interactions of {dataset.num_users:,} users with "
            f"{dataset.num_items:,} items, in {dataset.path}"
        )
