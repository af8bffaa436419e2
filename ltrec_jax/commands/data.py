"""Commands of the data stage: what there is, fetch, prepare, describe, anonymise."""

import dataclasses
import itertools
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro

from ltrec_jax.data.prepare_options import ColumnMap, PrepareOptions, options_from_dict
from ltrec_jax.errors import UserError, unknown_name


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


@dataclasses.dataclass(frozen=True)
class PrepareSettings:
    """Every flag of `ltrec data prepare` beyond its files."""

    columns: ColumnMap
    options: tyro.conf.OmitArgPrefixes[PrepareOptions]


@dataclasses.dataclass(frozen=True)
class Prepare:
    """Make a dataset directory from your own files: CSV, TSV, JSONL or Parquet, larger than memory if need be.

    Rows that cannot be used are set aside in OUT/rejected.parquet with the reason and the line. Every option is a flag:
    --min-user-interactions 5, --scale 1 5, --strict, --engine spark, --columns.user customer.

    Example:  ltrec data prepare ratings.csv --items films.csv --out data/films --scale 1 5
    """

    interactions: Annotated[
        tyro.conf.Positional[str], tyro.conf.arg(metavar="EVENTS", help="file, glob pattern or folder of shards")
    ]
    out: Annotated[Path, tyro.conf.arg(help="dataset directory to make")]
    items: Annotated[str | None, tyro.conf.arg(help="table of items with their texts")] = None
    users: Annotated[str | None, tyro.conf.arg(help="table of users")] = None
    config: Annotated[Path | None, tyro.conf.arg(help="TOML with options, and [columns] that map names")] = None
    replace: Annotated[bool, tyro.conf.arg(help="replace an existing --out")] = False

    def run(self, settings: Sequence[str]) -> None:
        from ltrec_jax.data import prepare

        columns, options = options_from_dict(_read_toml(self.config) if self.config else {})
        chosen = tyro.cli(
            PrepareSettings, default=PrepareSettings(columns, options), args=list(settings), prog="ltrec data prepare"
        )
        dataset = prepare.prepare(
            self.interactions,
            self.items,
            self.users,
            out=self.out,
            columns=chosen.columns,
            options=chosen.options,
            replace=self.replace,
        )
        for line in _account(dataset.info):
            print(line)
        print(
            f"{dataset.path}: {len(dataset.interactions):,} interactions, {dataset.num_users:,} users, "
            f"{dataset.num_items:,} items. Next: ltrec data describe {dataset.path}"
        )


@dataclasses.dataclass(frozen=True)
class Describe:
    """Describe a dataset: long tail, groups, texts, time, examples; on the terminal and as one HTML page.

    Example:  ltrec data describe movielens-100k
    """

    data: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="DATA", help="dataset directory, or known name")]
    split: Annotated[str, tyro.conf.arg(help="show this split too, such as temporal or official/u2")] = ""
    seed: Annotated[int, tyro.conf.arg(help="of the split")] = 0
    page: Annotated[Path | None, tyro.conf.arg(help="HTML page to write; default: DATA.html here")] = None

    def run(self, settings: Sequence[str]) -> None:
        from rich.console import Console

        from ltrec_jax import experiment
        from ltrec_jax.config import Config, DataConfig
        from ltrec_jax.data import describe, describe_shown

        dataset = experiment.load(self.data)
        config = Config(data=DataConfig(split=self.split), seed=self.seed)
        found = describe.describe(dataset, experiment.split_of(dataset, config) if self.split else None)
        describe_shown.print_description(found, Console())
        page = self.page or Path(f"{dataset.name}.html")
        describe_shown.write_page(found, page)
        print(f"The page is {page}")


@dataclasses.dataclass(frozen=True)
class Anonymise:
    """Copy a dataset under salted pseudonyms, with k-anonymous user attributes.

    Keep the salt file apart from the data: who has both can undo the pseudonyms.

    Example:  ltrec data anonymise data/shop --out data/shop-anonymous --salt ~/shop.salt --new-salt --drop zip_code
    """

    data: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="DATA", help="dataset directory, or known name")]
    out: Annotated[Path, tyro.conf.arg(help="dataset directory to make")]
    salt: Annotated[Path, tyro.conf.arg(help="file with the secret salt, outside every dataset directory")]
    new_salt: Annotated[bool, tyro.conf.arg(help="make the salt file if it is not there")] = False
    k: Annotated[int, tyro.conf.arg(aliases=["-k"], help="users that must share every combination of attributes")] = 5
    drop: Annotated[tuple[str, ...], tyro.conf.arg(help="columns to leave out")] = ()
    quasi_identifiers: Annotated[
        tuple[str, ...], tyro.conf.arg(help="columns of users to make k-anonymous; default: all that are left")
    ] = ()
    items: Annotated[bool, tyro.conf.arg(help="pseudonyms for items too")] = False
    replace: Annotated[bool, tyro.conf.arg(help="replace an existing --out")] = False

    def run(self, settings: Sequence[str]) -> None:
        from ltrec_jax import experiment
        from ltrec_jax.data import anonymise

        dataset = experiment.load(self.data)
        salt = anonymise.read_salt(self.salt.expanduser(), outside=[self.out], create=self.new_salt)
        protected = anonymise.anonymise(
            dataset,
            salt,
            k=self.k,
            quasi_identifiers=self.quasi_identifiers or None,
            drop=self.drop,
            pseudonymise_items=self.items,
        )
        made = protected.save(self.out, replace=self.replace)
        print(
            f"{made.path}: {made.info['anonymised']['suppressed_users']:,} users have no attributes left (k={self.k})."
        )


def _account(info: Mapping[str, Any]) -> Iterator[str]:
    """What became of the rows, a line each: rejected by reason, then what each step kept."""
    for table, found in info["rejected"].items():
        reasons = ", ".join(f"{reason}: {count:,}" for reason, count in found["reasons"].items())
        set_aside = f"; {found['rejected']:,} set aside in rejected.parquet ({reasons})" if reasons else ""
        yield f"{table}: {found['read']:,} rows read{set_aside}"
    steps = list(info["steps"].items())
    for (_, before), (step, after) in itertools.pairwise(steps):
        if step != "kept" and after != before:
            yield f"{step.replace('_', ' ')}: {after:,} of {before:,} interactions"
    if info["items_without_metadata"]:
        yield f"{info['items_without_metadata']:,} items of the interactions are not in the table of items: empty texts"


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UserError(f"Cannot read the options in {path}: {error}.") from error
