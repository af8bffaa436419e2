"""Stages 2 and 3: pretrained text encoders in Flax Linen, and the vectors they give.

`registry` and `weights` load one, `bert` runs it (through the products of `dense`), `pooling` turns token vectors
into text vectors, `catalogue` encodes every distinct text once. What a text is belongs to `text`; what its vector
is good for belongs to `model`.
"""
