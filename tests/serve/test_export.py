import json
import subprocess
import sys

import numpy as np
import pandas as pd

from ltrec_jax.serve.export import export_bundle
from ltrec_jax.serve.placing import Placer

# Runs where nothing of ltrec_jax may be imported.
ELSEWHERE = """
import json, pathlib, sys
sys.modules["ltrec_jax"] = None
import faiss, jax, numpy as np, pyarrow.parquet, safetensors.numpy, tokenizers
place = pathlib.Path(sys.argv[1])
about = json.loads((place / "export.json").read_text())
program = jax.export.deserialize((place / about["encoder"]["file"]).read_bytes())
engine = tokenizers.Tokenizer.from_file(str(place / "tokenizer.json"))
length = about["encoder"]["max_length"]
tokens = [engine.encode(text).ids[:length] for text in json.loads(sys.argv[2])]
ids = np.zeros((len(tokens), length), np.int32)
for row, one in enumerate(tokens):
    ids[row, :len(one)] = one
found = program.call(safetensors.numpy.load_file(place / "parameters.safetensors"), ids,
                     np.array([len(one) for one in tokens], np.int32))
q, b = np.load(place / "item_vectors.npy"), np.load(place / "item_biases.npy")
p, c = np.load(place / "user_vectors.npy"), np.load(place / "user_biases.npy")
index = faiss.read_index(str(place / "index.faiss"))
_, nearest = index.search(np.append(p[7], 1.0)[None].astype(np.float32), 5)
table = pyarrow.parquet.read_table(place / "items.parquet").to_pydict()
assert np.allclose(np.array(table["vector"]), q) and np.allclose(table["bias"], b)
print(json.dumps({"text": np.asarray(found[0]).tolist(), "anchor": np.asarray(found[1]).tolist(),
                  "bias": np.asarray(found[2]).tolist(), "nearest": nearest[0].tolist(),
                  "scores": (about["mu"] + c[7] + b + q @ p[7]).tolist()}))
"""


def test_other_systems_can_use_every_part(bundle, tmp_path):
    export_bundle(bundle, tmp_path / "exported", faiss="hnsw")
    texts = ["the comet orbit", "the heist", "the tractor barn cattle harvest orchard"]
    done = subprocess.run(
        [sys.executable, "-c", ELSEWHERE, str(tmp_path / "exported"), json.dumps(texts)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    placer = Placer(bundle)
    placed = placer.place(texts)
    placer.close()
    np.testing.assert_allclose(found["text"], placed.text_KxE, atol=1e-5)
    np.testing.assert_allclose(found["anchor"], placed.anchor_KxD, atol=1e-5)
    np.testing.assert_allclose(found["bias"], placed.bias_K, atol=1e-5)
    scores = np.asarray(bundle.score(np.array([7])))[0]
    np.testing.assert_allclose(found["scores"], scores, atol=1e-5)
    assert set(found["nearest"]) == set(np.argsort(-scores)[:5].tolist())
    about = json.loads((tmp_path / "exported" / "export.json").read_text())
    assert about["faiss"]["found_of_exact_20"]["all"] > 0.9
    assert len(pd.read_parquet(tmp_path / "exported" / "items.parquet")) == bundle.num_items
