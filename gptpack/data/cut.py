"""A shard of whole documents -> the same without what is beyond a document's first tokens.

Nothing is copied but what is read: a view knows where documents begin in its shard, and where they
would if the shard held them cut.
"""

import numpy as np

from gptpack.data.shards import Tokens


class CutDocuments:
    """A view of `tokens`, of whose documents the first `most` tokens are left.

    What comes before the shard's first BOS is a document as well, one that began in the shard
    before.
    """

    def __init__(self, tokens: Tokens, *, bos: int, most: int) -> None:
        begins = np.flatnonzero(np.asarray(tokens) == bos)
        if len(tokens) and (not len(begins) or begins[0]):
            begins = np.concatenate(([0], begins))
        lengths = np.minimum(np.diff(begins, append=len(tokens)), most)
        self.tokens, self.begins = tokens, begins.astype(np.int64)
        self.places = np.concatenate(([0], np.cumsum(lengths, dtype=np.int64)))
        """Where each document begins in the view, and last the view's length."""

    def __len__(self) -> int:
        return int(self.places[-1])

    def __getitem__(self, wanted: slice) -> Tokens:
        start, stop, _ = wanted.indices(len(self))
        pieces = []
        document = int(np.searchsorted(self.places, start, side="right")) - 1
        while start < stop:
            end = min(stop, int(self.places[document + 1]))
            first = int(self.begins[document]) + start - int(self.places[document])
            pieces.append(self.tokens[first : first + end - start])
            start, document = end, document + 1
        return np.concatenate(pieces) if pieces else self.tokens[:0]

    def __array__(self, dtype: object = None, copy: object = None) -> Tokens:
        return self[:]
