"""Counter-based random numbers: each is a hash of where it is used.

A numpy `Generator` per sequence costs tens of microseconds to seed, and one generator for all makes a number depend on
how many were drawn before it. Here every number is a hash of (seed, epoch, sequence index, purpose,
counter): the same on any worker, rank, batch size and after any resume, and thousands of counters are hashed at once.

The hash is the output function of SplitMix64 (Steele, Lea & Flood, *Fast splittable pseudorandom number generators*,
OOPSLA 2014) over a Weyl sequence; each purpose starts its own sequence at a hashed key.
"""

import numpy as np

WEYL = np.uint64(0x9E3779B97F4A7C15)  # 2^64 / golden ratio, odd: counters land far apart before mixing
_MULTIPLY_1, _MULTIPLY_2 = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_S27, _S30, _S31, _S32, _S11 = (np.uint64(shift) for shift in (27, 30, 31, 32, 11))


def mix(words: np.ndarray) -> np.ndarray:
    """SplitMix64's finaliser, a bijection of uint64 with full avalanche. Works in place and returns its argument."""
    words ^= words >> _S30
    words *= _MULTIPLY_1
    words ^= words >> _S27
    words *= _MULTIPLY_2
    words ^= words >> _S31
    return words


def _as_words(numbers: int | np.ndarray) -> np.ndarray:
    """Integers of any sign as uint64, (1,) or (B,)."""
    if isinstance(numbers, int):
        return np.array([numbers & 0xFFFFFFFFFFFFFFFF], np.uint64)
    return np.atleast_1d(np.asarray(numbers)).astype(np.int64).view(np.uint64)


def sequence_keys(seed: int, epoch: int | np.ndarray, indices: np.ndarray) -> np.ndarray:
    """One uint64 key per sequence, (B,), a function of (seed, epoch, index) alone; epoch: one number, or (B,)."""
    key = mix(_as_words(seed) + WEYL)
    key = mix(key + _as_words(epoch) * WEYL)
    return mix(key + _as_words(indices) * WEYL)


def stream(keys: np.ndarray, purpose: int) -> np.ndarray:
    """Keys of an independent stream of the same sequences, uint64 of the same shape; `purpose` is a small number."""
    return mix(keys + np.uint64(purpose + 1) * _MULTIPLY_1.reshape(1))


def draw(stream_keys: np.ndarray, counters: np.ndarray) -> np.ndarray:
    """64 random bits for each (stream, counter); the two arguments broadcast. Returns uint64."""
    return mix(stream_keys + np.asarray(counters).astype(np.uint64) * WEYL)


def below(bits: np.ndarray, bound: np.ndarray) -> np.ndarray:
    """Uniform integers in [0, bound), int64, from the upper 32 bits; bound < 2^31 (bias at most bound / 2^32)."""
    return (((bits >> _S32) * np.asarray(bound).astype(np.uint64)) >> _S32).view(np.int64)


def unit(bits: np.ndarray) -> np.ndarray:
    """Uniform float64 in [0, 1), from the upper 53 bits."""
    return (bits >> _S11) * 2.0**-53
