"""Temporary."""

from __future__ import annotations
import torch
from torch import Tensor
from torchrl_metra._private import SelfSamplingStorage


class EpisodeStorage(SelfSamplingStorage):
    def __init__(self, storage, *, state_keys=("observation",), steps_ahead=25):
        super().__init__(None, storage.max_size, device=storage.device)
        self.inner, self.state_keys, self.c = storage, list(state_keys), steps_ahead
        n = storage.max_size
        self._ep = torch.zeros(n, dtype=torch.long)
        self._ahead = torch.full((n,), -1)
        self._f = {}
        self.first = torch.zeros(4 * n, dtype=torch.long)
        self.last = torch.zeros(4 * n, dtype=torch.long)
        self.tails = {}
        self.count = 0

    def __len__(self):
        return len(self.inner)

    def draw(self, b, g):
        return self.inner._rand_given_ndim(b)

    def set(self, cursor, data, *, set_cursor=True):
        slots = torch.as_tensor(cursor)
        self.inner.set(cursor, data, set_cursor=set_cursor)
        s, n = data["observation"], data["next", "observation"]
        done = data["next", "done"].flatten()
        cont = torch.zeros(len(s), dtype=torch.bool)
        cont[1:] = (s[1:] == n[:-1]).all(-1) & ~done[:-1]
        starts = (~cont).nonzero().flatten().tolist() + [len(s)]
        for a, b in zip(starts[:-1], starts[1:]):
            run = slots[a:b]
            tail = self.tails.pop(s[a].numpy().tobytes(), None)
            if tail is None:
                ep = self.count
                self.count += 1
                self.first[ep] = run[0]
                old = run[:0]
            else:
                ep, old = tail
            self.last[ep] = run[-1]
            self._ep[run] = ep
            self._ahead[run] = -1
            al = torch.cat([old, run])
            if len(al) > self.c - 1:
                self._ahead[al[: len(al) - self.c + 1]] = al[self.c - 1 :]
            if not done[b - 1]:
                self.tails[n[b - 1].numpy().tobytes()] = (ep, al[-(self.c - 1) :])
        self.initialized = True
        self.note_change(slots if set_cursor else None)

    def get(self, index):
        data = self.inner.get(index)
        if not isinstance(index, Tensor) or index.ndim != 1:
            return data
        ep = self._ep[index]
        last = self.last[ep]
        ah = self._ahead[index]
        ah = torch.where(ah < 0, last, ah)
        ends = self.inner.get(torch.cat([self.first[ep], last, ah]))
        f, l, a = ends.chunk(3)
        data = data.copy()
        for k in self.state_keys:
            data["first", k] = f[k]
            data["last", k] = l["next", k]
            data["ahead", k] = a["next", k]
        return data

    def _counters(self):
        return {}

    def clear(self):
        pass
