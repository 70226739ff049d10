"""A shuffle without a list: position i of epoch e is a pure function of (seed, e, i).

A Feistel network permutes [0, 2^(2b)) and cycle walking keeps the result inside [0, n) (Black and Rogaway,
"Ciphers with Arbitrary Finite Domains", 2002).  No permutation is held in memory and any position is reached at
once, so a run resumes at step k without replaying k steps.
"""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import ArrayLike, NDArray

NUM_ROUNDS = 8


def shuffled_position(index: ArrayLike, size: int, seed: int, epoch: int = 0) -> NDArray[np.int64]:
    """Where the shuffle of ``range(size)`` puts ``index``.

    Args:
        index: one or many positions in [0, size).

    Returns:
        int64 of the same shape; over all indices a permutation of ``range(size)``.

    Raises:
        ValueError: an index outside [0, size).
    """
    positions = np.asarray(index, dtype=np.int64)
    if positions.size and (positions.min() < 0 or positions.max() >= size):
        raise ValueError(f"index outside [0, {size})")
    half_bits = max(1, (max(size - 1, 1).bit_length() + 1) // 2)
    keys = _round_keys(seed, epoch)
    values = _permute(positions.astype(np.uint64), half_bits, keys)
    while (outside := values >= size).any():  # expected under four walks: the domain is < 4 n
        values = np.where(outside, _permute(values, half_bits, keys), values)
    return values.astype(np.int64)


def _round_keys(seed: int, epoch: int) -> NDArray[np.uint64]:
    digest = hashlib.blake2b(f"{seed}:{epoch}".encode(), digest_size=8 * NUM_ROUNDS).digest()
    return np.frombuffer(digest, dtype="<u8")


def _permute(values: NDArray[np.uint64], half_bits: int, keys: NDArray[np.uint64]) -> NDArray[np.uint64]:
    bits, mask = np.uint64(half_bits), np.uint64((1 << half_bits) - 1)
    left, right = values >> bits, values & mask
    for key in keys:
        left, right = right, left ^ (_mix(right ^ key) & mask)
    return (left << bits) | right


def _mix(value: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """SplitMix64's finaliser (Steele, Lea and Flood 2014); overflow wraps, as meant."""
    with np.errstate(over="ignore"):
        value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))
