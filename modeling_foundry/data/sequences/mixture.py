"""Several corpora in given shares, each sample placed by arithmetic alone.

Samples come in periods.  Over any number of periods source s has floor(W_s n) - floor(W_{s-1} n) of the first n
samples, where W is the running sum of the weights as fractions: the shares are exact to one sample, and how many
samples of a source came before sample i is known without counting them.  Inside a period the order is shuffled.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from fractions import Fraction
from itertools import accumulate, pairwise
from math import floor

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import ConcatDataset, Dataset, Subset

from ...settings import FoundryError
from ..tokens.corpus import TokenSource
from .packing import PackedDataset
from .shuffle import shuffled_position

PERIOD_SAMPLES = 4096
SMALLEST_WEIGHT = Fraction(1, PERIOD_SAMPLES)  # a smaller share could be owed a sample less than none


def shares_of(weights: Mapping[str, float]) -> dict[str, Fraction]:
    """Each weight's share of their sum, exactly.

    Raises:
        FoundryError: a weight that is not positive or too small a share.
    """
    for name, weight in weights.items():
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight < float("inf"):
            raise FoundryError(f"mixture: {name}: expected a positive weight, found {weight!r}")
    total = sum((Fraction(str(weight)) for weight in weights.values()), Fraction())
    shares = {name: Fraction(str(weight)) / total for name, weight in weights.items()}
    for name, share in shares.items():
        if share < SMALLEST_WEIGHT:
            raise FoundryError(
                f"mixture: {name}: a share of {float(share):.2g} is below 1/{PERIOD_SAMPLES}; leave it out"
            )
    return shares


class Mixture:
    """Which source, and which of its samples, each sample of a run is.

    Args:
        weights: any positive numbers; their shares of the sum are what counts.

    Raises:
        FoundryError: a weight that is not positive or too small a share.
    """

    def __init__(self, weights: Mapping[str, float], seed: int) -> None:
        self.names, self.seed = list(weights), seed
        self._running = [Fraction(), *accumulate(shares_of(weights).values())]
        self._period: tuple[int, NDArray[np.int64], NDArray[np.int64]] | None = None

    def place(self, index: int) -> tuple[int, int]:
        """The source of a sample and its number among the samples of that source."""
        number, place = divmod(index, PERIOD_SAMPLES)
        if self._period is None or self._period[0] != number:
            self._period = number, *self._arranged(number)
        return int(self._period[1][place]), int(self._period[2][place])

    def counts(self, num_samples: int) -> list[int]:
        """How many of the first ``num_samples`` each source gives."""
        number, rest = divmod(num_samples, PERIOD_SAMPLES)
        sources, _ = self._arranged(number)
        inside = np.bincount(sources[:rest], minlength=len(self.names))
        return [before + int(here) for before, here in zip(self._before(number), inside, strict=True)]

    def _before(self, number: int) -> list[int]:
        """Samples of each source in the first ``number`` periods."""
        ends = [floor(running * number * PERIOD_SAMPLES) for running in self._running]
        return [end - start for start, end in pairwise(ends)]

    def _arranged(self, number: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """For each place of a period its source, and the number of the sample within that source."""
        before, after = self._before(number), self._before(number + 1)
        quotas = [end - start for start, end in zip(before, after, strict=True)]
        order = shuffled_position(np.arange(PERIOD_SAMPLES), PERIOD_SAMPLES, self.seed, number)
        sources = np.repeat(np.arange(len(quotas)), quotas)[order]
        within = np.empty(PERIOD_SAMPLES, dtype=np.int64)
        for source, start in enumerate(before):
            here = np.flatnonzero(sources == source)
            within[here] = start + np.arange(len(here))
        return sources, within


class MixedDataset(Dataset):
    """Packed sequences of several sources; sample i is a function of (seed, i) alone.

    Args:
        sources: by name, in the order of ``weights``.
        num_samples: length of the run in sequences.
        max_epochs: how often a source may be repeated.

    Raises:
        FoundryError: the run would repeat a source more often than that; said with what would fit.
    """

    def __init__(
        self,
        sources: Mapping[str, TokenSource],
        weights: Mapping[str, float],
        sequence_length: int,
        num_samples: int,
        seed: int = 0,
        max_epochs: float = 1.0,
        document_mask: bool = False,
    ) -> None:
        self.mixture, self.num_samples = Mixture(weights, seed), num_samples
        counts = self.mixture.counts(num_samples)
        self.parts = [
            PackedDataset(sources[name], sequence_length, max(1, count), seed + 1 + number, document_mask)
            for number, (name, count) in enumerate(zip(self.mixture.names, counts, strict=True))
        ]
        for name, part, count in zip(self.mixture.names, self.parts, counts, strict=True):
            if count > max_epochs * part.num_blocks:
                raise FoundryError(
                    f"mixture: {name}: {num_samples:,} sequences would repeat it {count / part.num_blocks:.3g} times "
                    f"and max_epochs is {max_epochs:g}; lower its weight or max_steps, or raise max_epochs"
                )

    def tokens_in(self, samples: Iterable[range]) -> dict[str, int]:
        """Tokens that each source gives in some ranges of samples, exactly, without reading any."""
        tokens = dict.fromkeys(self.mixture.names, 0)
        for each in samples:
            before, after = self.mixture.counts(each.start), self.mixture.counts(each.stop)
            for name, first, last in zip(tokens, before, after, strict=True):
                tokens[name] += (last - first) * self.parts[0].sequence_length
        return tokens

    def accounting(self, samples: Iterable[range] | None = None) -> str:
        """One line: for each source its tokens, their share, and how often it is read.

        Args:
            samples: ranges of samples; all of the run where not given.
        """
        by_source = self.tokens_in([range(self.num_samples)] if samples is None else samples)
        total = sum(by_source.values())
        said = [
            f"{name} {tokens:,} tokens ({tokens / max(1, total):.2%}, {tokens / part.num_corpus_tokens:.3g} epochs)"
            for (name, tokens), part in zip(by_source.items(), self.parts, strict=True)
        ]
        return "mixture: " + "; ".join(said)

    @property
    def num_corpus_tokens(self) -> int:
        """Tokens of all sources, once."""
        return sum(part.num_corpus_tokens for part in self.parts)

    def __len__(self) -> int:
        return self.num_samples

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """As :meth:`PackedDataset.__getitem__`."""
        if not 0 <= index < self.num_samples:
            raise IndexError(f"sample {index} of {self.num_samples}")
        source, number = self.mixture.place(index)
        return self.parts[source][number]


class HeldOutMixture(ConcatDataset):
    """The first sequences of every source's held-out side, in file order, as many of each as its weight says.

    The source with the least held out for its weight decides how many there are, so that the shares hold; a
    source owed less than one sequence gives one.

    Raises:
        FoundryError: a source does not fill one sequence, or there are more sources than ``max_sequences``.
    """

    def __init__(
        self,
        sources: Mapping[str, TokenSource],
        weights: Mapping[str, float],
        sequence_length: int,
        max_sequences: int,
        document_mask: bool = False,
    ) -> None:
        for name, source in sources.items():
            if source.num_tokens < sequence_length:
                raise FoundryError(
                    f"mixture: {name}: {source.num_tokens} held-out tokens do not fill one sequence of "
                    f"{sequence_length}; give --eval_strategy=no, or hold more out"
                )
        parts = {
            name: PackedDataset(sources[name], sequence_length, document_mask=document_mask)
            for name in weights
        }
        present = {name: len(part) for name, part in parts.items()}
        self.sequences_by_source = held_out_counts(shares_of(weights), present, max_sequences)
        super().__init__(
            [Subset(part, range(self.sequences_by_source[name])) for name, part in parts.items()]
        )

    def accounting(self) -> str:
        """One line: for each source its held-out sequences and their share."""
        said = [
            f"{name} {count:,} sequences ({count / len(self):.2%})"
            for name, count in self.sequences_by_source.items()
        ]
        return "held out: " + "; ".join(said)


def held_out_counts(
    shares: Mapping[str, Fraction], present: Mapping[str, int], max_sequences: int
) -> dict[str, int]:
    """Sequences of each source: shares of the largest total that every source can serve, by largest remainder.

    Args:
        present: sequences that each source has, at least one.

    Raises:
        FoundryError: there are more sources than ``max_sequences``.
    """
    if max_sequences < len(shares):
        raise FoundryError(
            f"max_eval_sequences: expected at least {len(shares)}, one a corpus, found {max_sequences}"
        )
    served = min(floor(present[name] / share) for name, share in shares.items())
    total = min(max_sequences, served)
    counts = {name: floor(share * total) for name, share in shares.items()}
    by_remainder = sorted(shares, key=lambda name: counts[name] - shares[name] * total)
    for name in by_remainder[: total - sum(counts.values())]:
        counts[name] += 1
    for name in [name for name, count in counts.items() if count == 0]:
        counts[name] = 1
        largest = max(counts, key=lambda other: counts[other])
        counts[largest] -= counts[largest] > 1
    return counts
