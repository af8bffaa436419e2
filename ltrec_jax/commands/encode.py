"""The command that turns texts into vectors on disk."""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from ltrec_jax.errors import UserError, unknown_name

if TYPE_CHECKING:
    from ltrec_jax.text.corpus import Corpus


@dataclasses.dataclass(frozen=True)
class Encode:
    """Encode every distinct text of a catalogue once, into vectors.npy and ids.parquet; a killed run goes on.

    Example:  ltrec encode --data movielens-1m --out vectors/films
              ltrec encode --texts films.parquet --text-column plot --precision int8 --out vectors/plots
    """

    out: Annotated[Path, tyro.conf.arg(help="directory to make, or to go on with")]
    data: Annotated[str, tyro.conf.arg(help="known dataset, or a directory made by `ltrec data prepare`")] = ""
    texts: Annotated[Path | None, tyro.conf.arg(help="or a table: .parquet, .csv, .tsv (.gz)")] = None
    id_column: Annotated[str, tyro.conf.arg(help="its column of ids")] = "id"
    text_column: Annotated[str, tyro.conf.arg(help="its column of texts")] = "text"
    template: Annotated[str, tyro.conf.arg(help="or a text from several columns, as '{title} ({year})'")] = ""
    encoder: Annotated[str, tyro.conf.arg(help="registry name, directory or hub id")] = "all-MiniLM-L6-v2"
    precision: Annotated[Literal["float32", "bfloat16", "int8"], tyro.conf.arg(help="operands of the products")] = (
        "bfloat16"
    )
    dtype: Annotated[
        Literal["float32", "float16", "bfloat16"],
        tyro.conf.arg(help="vectors are stored in it; bfloat16 is read by ltrec_jax.open_encoded alone"),
    ] = "float32"
    max_length: Annotated[int | None, tyro.conf.arg(help="tokens per text; default: what the encoder is made for")] = (
        None
    )
    prompt: Annotated[
        str | None,
        tyro.conf.arg(help="goes before each text: 'query: ', or the name of one of the encoder's; '' for none at all"),
    ] = None
    tokens_per_call: Annotated[
        int | None, tyro.conf.arg(help="per device; default: 512 to 1024 on a CPU, two rows at least; 32768 elsewhere")
    ] = None
    attention: Annotated[Literal["xla", "cudnn"], tyro.conf.arg(help="on a GPU; cudnn needs bfloat16")] = "xla"
    replace: Annotated[bool, tyro.conf.arg(help="replace an --out made by other settings")] = False

    def run(self, settings: Sequence[str]) -> None:
        from ltrec_jax import parallel, storage
        from ltrec_jax.encoder.shards import encode_to_disk
        from ltrec_jax.encoder.weights import load_encoder

        if self.tokens_per_call is not None and self.tokens_per_call < 1:
            raise UserError("--tokens-per-call must be at least 1.")
        source = self._corpus()
        encoder = load_encoder(self.encoder).with_attention(self.attention)
        parallel.enable_compile_cache(str(storage.cache_directory() / "compiled"))
        parallel.warn_about_unused_accelerator()
        prompt = encoder.default_prompt if self.prompt is None else self.prompt
        if self.prompt is None and prompt:
            print(f"Before each text goes the encoder's {prompt!r} prompt, its default (--prompt '' for none).")
        made = encode_to_disk(
            encoder,
            source,
            self.out,
            prompt=_prefix(prompt or "", encoder.prompts),
            policy=self.precision,
            dtype=self.dtype,
            max_length=self.max_length,
            tokens_per_call=self.tokens_per_call,
            replace=self.replace,
        )
        done, length = made.info["finished"], made.info["settings"]["max_length"]
        if made.texts:
            print(
                f"Encoded {made.texts:,} texts in {made.seconds:,.1f} s: {made.texts / made.seconds:,.0f} texts/s, "
                f"{made.tokens / made.seconds:,.0f} tokens/s."
            )
        if done["truncated"]:
            print(f"{done['truncated']:,} texts have more than {length} tokens and were cut there (--max-length).")
        print(
            f"{self.out}: {done['texts']:,} vectors of {done['width']}, {done['distinct']:,} distinct texts "
            "(vectors.npy, ids.parquet)."
        )
        if self.dtype == "bfloat16":
            print(
                "NumPy has no bfloat16: np.load gives its bits as uint16, the vectors are "
                f"ltrec_jax.open_encoded({str(self.out)!r}).vectors."
            )

    def _corpus(self) -> "Corpus":
        from ltrec_jax import experiment
        from ltrec_jax.text import corpus

        if bool(self.data) == (self.texts is not None):
            raise UserError("Name the texts by one of --data (a dataset) and --texts (a table).")
        if self.texts is not None:
            return corpus.from_file(self.texts, self.id_column, self.text_column, self.template)
        return experiment.load_texts(self.data, self.template)


def _prefix(prompt: str, known: Mapping[str, str]) -> str:
    """The text before every text: that of a named prompt, or the prompt itself where it is no mere word."""
    if prompt in known:
        return known[prompt]
    if re.fullmatch(r"\w+", prompt):
        if not known:
            raise UserError(f"This encoder has no prompt {prompt!r}, nor any other; a text has a sign: '{prompt}: '.")
        raise unknown_name("prompt", prompt, known)
    return prompt
