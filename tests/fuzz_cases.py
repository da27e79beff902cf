"""Random ragged cases for fuzz.py: what they are, their data, and what they have to give."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

import exactile
from cases import DTYPES, Batch, cumulate
from exactile import _core
from serving import in_pages, some_sinks, some_slopes, with_padding, with_scores, with_used_lengths

LENGTHS = [0, 1, 2, 3, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129]
HEADS = [(1, 1), (2, 1), (3, 1), (4, 1), (5, 5), (6, 2), (4, 4), (8, 1)]
SCORES = ["normal", "normal", "sharp", "rising", "equal", "large", "scaled"]
LAYOUTS = ["dense", "gaps", "heads first"]
POISONS = ["none", "none", "sequence", "key", "query"]
# CUDA takes rows at multiples of 16 bytes, PyTorch has no negative strides; in a CUDA tile, V may
# reach rows that do not see the key.
ON_CPU = {"layout": ["odd", "reversed"], "poison": ["value"]}
PAGE_SIZES = [1, 2, 3, 7, 16, 17, 64, 100, 128, 256]
SERVING_BACKENDS = ["cpu", "cuda"]
LOG2_E = 1 / float(np.log(2))
NOISE = np.random.default_rng(0).standard_normal(1 << 20).astype(np.float32)


@dataclass
class Case:
    """All that says what is computed; its repr is what is printed of a wrong one."""

    seed: tuple[int, int]
    dtype: str
    head_dims: tuple[int, int]
    heads: tuple[int, int]
    lens_q: list[int]
    lens_k: list[int]
    mask: dict[str, Any]
    scores: str
    softmax_scale: float
    layouts: list[str]  # of q, k, v, out
    poison: str
    serving: dict[str, Any]  # used lengths, padding, pages, variant of the scores; empty: none
    options: list[dict[str, Any]]  # of two runs, the second without poison


def draw_case(seed: int, index: int, backend: str) -> Case:
    """The case of a number: the same on every machine."""
    rng = np.random.default_rng((seed, index))

    def pick(choices):
        return choices[rng.integers(len(choices))]

    rows = [row[1:] for row in _core.support() if row[0] == backend]
    dtype, head_dim, head_dim_v = pick(rows)
    heads = pick(HEADS)
    lens_q, lens_k = _draw_lengths(rng, pick)
    scores = pick(SCORES)
    layouts = LAYOUTS + (ON_CPU["layout"] if backend == "cpu" else [])
    largest_scale = 8 if dtype == "float16" else 60
    serving = {}
    if backend in SERVING_BACKENDS and rng.random() < 0.6:
        serving = _draw_serving(rng, pick, len(lens_q), heads[0], scores)
    return Case(
        seed=(seed, index),
        dtype=dtype,
        head_dims=(head_dim, head_dim_v),
        heads=heads,
        lens_q=lens_q,
        lens_k=lens_k,
        mask=pick(
            [
                {},
                {"causal": True},
                {"window": (int(rng.integers(-1, 140)), int(rng.integers(-1, 140)))},
                {"window": (int(rng.integers(0, 8)), int(rng.integers(0, 8)))},
                {"causal": True, "window": (int(rng.integers(0, 70)), -1)},
            ]
        ),
        scores=scores,
        softmax_scale=(
            2.0 ** int(rng.integers(-largest_scale, largest_scale + 1))
            if scores == "scaled"
            else float(head_dim**-0.5)
        ),
        layouts=[
            pick(layouts),
            pick(layouts),
            pick(layouts),
            pick([x for x in layouts if x != "reversed"]),
        ],
        poison=pick(POISONS + (ON_CPU["poison"] if backend in ("cpu", "sycl") else [])),
        serving=serving,
        options=[_draw_options(rng, pick, backend, serving) for _ in range(2)],
    )


def _draw_lengths(rng, pick) -> tuple[list[int], list[int]]:
    if rng.random() < 0.04:  # long enough for groups of key blocks, or a bench of short ones
        if rng.random() < 0.5:
            return [int(rng.integers(1, 9))], [int(rng.integers(1000, 5000))]
        short = rng.integers(0, 9, 40).tolist()
        return short, short
    lens_q, lens_k = [], []
    for _ in range(rng.integers(1, 6)):
        length = pick(LENGTHS) if rng.random() < 0.6 else int(rng.integers(0, 200))
        other = pick(
            [length, length, length + int(rng.integers(0, 90)), pick(LENGTHS), length // 2]
        )
        lens_q.append(length)
        lens_k.append(other)
    return lens_q, lens_k


def _draw_options(rng, pick, backend: str, serving: dict[str, Any]) -> dict[str, Any]:
    # Each policy of a serving kernel would have to be compiled for a GPU: its tests do so.
    compiled = backend == "cuda" and bool(serving)
    options: dict[str, Any] = {
        "scheduler": "auto" if compiled else pick([*exactile.SCHEDULERS, "auto"])
    }
    if options["scheduler"] not in ("Individual", "auto"):
        options["order"] = pick([None, *_core.ORDERS])
    options["pack_gqa"] = pick([None, False, True])
    if backend in ("cpu", "sycl"):
        options["workers"] = int(rng.integers(1, 4))
    elif options["scheduler"] == "auto" and pick([False, True]):
        options["num_splits"] = pick([1, 2, 5])
    elif options["scheduler"] != "Individual" and not {"used", "page_size"} & serving.keys():
        options["pack_sequences"] = pick([None, False])
    return options


def _draw_serving(rng, pick, batch: int, heads: int, scores: str) -> dict[str, Any]:
    """Each feature in about every third case, so that all meet all others."""
    seed = int(rng.integers(100))
    drawn: dict[str, Any] = {
        "used": pick(["q", "k", "qk"]),
        "padding": int(rng.integers(1, 80)),
        "page_size": pick(PAGE_SIZES if batch <= 5 else PAGE_SIZES[:7]),
        "softcap": pick([0.5, 3.0, 30.0, 50.0, 1e4]),
        "sinks": some_sinks(heads, seed),
        "slopes": some_slopes(*pick([(heads,), (batch, heads)]), seed=seed),
    }
    if scores == "large":  # too large for a bias to be seen in float32
        del drawn["slopes"]
    drawn = {name: value for name, value in drawn.items() if rng.random() < 0.35}
    if "page_size" in drawn:
        drawn |= {"keep_cu_k": bool(rng.random() < 0.3), "side by side": bool(rng.random() < 0.3)}
    return drawn | {"seed": seed}


def place(case: Case, inputs: list[np.ndarray]) -> Batch:
    """The batch of q, k and v, where the case has them: NaN in all that does not count."""
    serving = dict(case.serving)
    seed = serving.pop("seed", 0)
    batch = Batch(*inputs, cumulate(case.lens_q), cumulate(case.lens_k))
    batch = with_scores(batch, *(serving.get(name) for name in ("softcap", "sinks", "slopes")))
    batch = with_padding(
        with_used_lengths(batch, serving.get("used", ""), seed), serving.get("padding", 0)
    )
    if "page_size" in serving:
        batch = in_pages(batch, serving["page_size"], keep_cu_k=serving["keep_cu_k"], seed=seed)
    return batch


@dataclass
class Data:
    """q, k, v of a case, packed and contiguous."""

    clean: list[np.ndarray]
    poisoned: list[np.ndarray]
    not_finite: np.ndarray  # (total_q, heads_q): rows whose out is Inf or NaN throughout
    nan_lse: np.ndarray  # (heads_q, total_q)


def make_data(case: Case) -> Data:
    """Values from a fixed table of noise, made hostile as the case says."""
    rng = np.random.default_rng((*case.seed, 1))
    (heads_q, heads_kv), (head_dim, head_dim_v) = case.heads, case.head_dims
    total_q, total_k = sum(case.lens_q), sum(case.lens_k)

    def noise(*shape: int) -> np.ndarray:
        size = int(np.prod(shape))
        start = rng.integers(len(NOISE))
        return np.take(NOISE, np.arange(start, start + size), mode="wrap").reshape(shape)

    q, k, v = (
        noise(total_q, heads_q, head_dim),
        noise(total_k, heads_kv, head_dim),
        noise(total_k, heads_kv, head_dim_v),
    )
    if case.scores in ("sharp", "rising"):
        # Whole eighths: their products are exact, and how float32 sums them up makes no difference.
        q, k = np.round(8 * q) / 8, np.round(8 * k) / 8
        if case.scores == "sharp":
            q *= 6
        else:
            k *= np.round(np.linspace(0, 5, total_k, dtype=np.float32))[:, None, None]
    elif case.scores == "equal":
        q[:] = 0
    elif case.scores == "large":
        _make_large(rng, case, q, k)
    elif case.scores == "scaled":
        # Scores are of ordinary size again, and powers of 2 change no digit.
        exponent = round(np.log2(case.softmax_scale * head_dim**0.5))
        q *= 2.0 ** -(exponent // 2)
        k *= 2.0 ** -(exponent - exponent // 2)
    clean = [x.astype(DTYPES[case.dtype]) for x in (q, k, v)]
    return _poison(rng, case, clean)


def _make_large(rng, case: Case, q: np.ndarray, k: np.ndarray) -> None:
    """Scores of up to 2^100 (float16: 2^30) that every order of sums gives exactly."""
    exponent = int(rng.integers(8, 30 if case.dtype == "float16" else 100))
    factor = 2.0 ** min(exponent // 2, 8)
    sign = rng.choice([-1, 1], q.shape[:2])
    q[:] = 0
    q[:, :, :32] = (2.0**exponent / 512 / factor * sign)[:, :, None]
    k[:] = (factor * rng.integers(-125, 126, k.shape[:2]))[:, :, None]


def _poison(rng, case: Case, clean: list[np.ndarray]) -> Data:
    q, k, v = poisoned = [x.copy() for x in clean]
    group = case.heads[0] // case.heads[1]
    not_finite = np.zeros(q.shape[:2], bool)
    nan_lse = np.zeros((q.shape[1], q.shape[0]), bool)
    data = Data(clean, poisoned, not_finite, nan_lse)
    cu_q, cu_k = cumulate(case.lens_q), cumulate(case.lens_k)
    sequences = np.flatnonzero(np.minimum(case.lens_q, case.lens_k))
    if case.poison == "none" or not len(sequences):
        return data
    value = rng.choice([np.nan, np.inf, -np.inf])
    if "softcap" in case.serving and case.poison == "sequence":  # a capped Inf is a number
        value = np.nan
    for b in rng.choice(sequences, rng.integers(1, 4)):
        rows, keys = slice(cu_q[b], cu_q[b + 1]), slice(cu_k[b], cu_k[b + 1])
        visible = ~hidden(case, b)
        if case.poison == "sequence":
            q[rows], k[keys], v[keys] = value, value, value
            wrong, heads = visible.any(axis=1), slice(None)
        elif case.poison == "query":
            row, head = rng.integers(case.lens_q[b]), rng.integers(case.heads[0])
            q[cu_q[b] + row, head] = np.nan
            wrong, heads = visible.any(axis=1) & (np.arange(case.lens_q[b]) == row), head
        else:
            key, head = rng.integers(case.lens_k[b]), rng.integers(case.heads[1])
            if case.poison == "value":
                v[cu_k[b] + key, head] = value
            else:
                k[cu_k[b] + key, head] = np.nan
            wrong, heads = visible[:, key], slice(head * group, (head + 1) * group)
        not_finite[rows, heads][wrong] = True
        if case.poison != "value":
            nan_lse[heads, rows][..., wrong] = True
    return data


def distances(case: Case, b: int) -> np.ndarray:
    """(rows, keys) of sequence b: of the key from the row's position."""
    len_q, len_k = case.lens_q[b], case.lens_k[b]
    return np.arange(len_k) - (np.arange(len_q) + len_k - len_q)[:, None]


def hidden(case: Case, b: int) -> np.ndarray:
    """(rows, keys) of sequence b that the mask hides."""
    left, right = case.mask.get("window", (-1, -1))
    right = 0 if case.mask.get("causal") else right
    distance = distances(case, b)
    return ((left >= 0) & (distance < -left)) | ((right >= 0) & (distance > right))


def sees_none(case: Case) -> np.ndarray:
    """(total_q,): rows that see no key."""
    rows = [hidden(case, b).all(axis=1) for b in range(len(case.lens_q))]
    return np.concatenate([*rows, np.zeros(0, bool)])


def reference(case: Case, data: Data, library: Any, as_array: Any, rounded: Any):
    """(out, lse) in the floats that as_array() makes, of clean data; `library`: numpy or torch."""
    q, k, v = (as_array(x) for x in data.clean)
    heads_q, heads_kv = case.heads
    shape = (heads_kv, heads_q // heads_kv)
    cu_q, cu_k = cumulate(case.lens_q), cumulate(case.lens_k)
    softcap = case.serving.get("softcap", 0)
    sink = case.serving.get("sinks", np.full(heads_q, -np.inf))
    sink = as_array(sink.reshape(*shape, 1, 1))
    slopes = case.serving.get("slopes", np.zeros(heads_q))
    slopes = np.broadcast_to(slopes, (len(case.lens_q), heads_q))
    outs, lses = [], []
    for b, (len_q, len_k) in enumerate(zip(case.lens_q, case.lens_k, strict=True)):
        queries = q[cu_q[b] : cu_q[b + 1]].reshape(len_q, *shape, case.head_dims[0])
        keys, values = (x[cu_k[b] : cu_k[b + 1]].swapaxes(0, 1) for x in (k, v))
        mask, distance = hidden(case, b), distances(case, b)
        if len_k == 0:  # a key of no weight stands in
            keys, values = (as_array(np.zeros((heads_kv, 1, n))) for n in case.head_dims)
            mask, distance = np.ones((len_q, 1), bool), np.zeros((len_q, 1))
        # (heads_kv, group, rows, keys)
        scores = queries.swapaxes(0, 1).swapaxes(1, 2) @ keys.swapaxes(1, 2)[:, None]
        scores = scores * case.softmax_scale
        if softcap:
            scores = softcap * library.tanh(scores / softcap)
        if slopes[b].any():
            scores = scores - as_array(slopes[b].reshape(*shape, 1, 1)) * as_array(abs(distance))
        scores = scores + as_array(np.where(mask, -np.inf, 0.0))
        top = library.amax(scores, -1)[..., None]
        seen = top > -np.inf
        top = library.where(seen, top, library.zeros_like(top))
        p = library.exp(scores - top)
        total = p.sum(-1)[..., None]
        total = library.where(seen, total, total + 1)
        # In base 2, as kernels have it: so a narrow dtype shows what far exponents lose there.
        share = total / (total + library.exp2(sink * LOG2_E - top * LOG2_E))
        # (heads_kv, group, rows, head_dim_v)
        out = rounded(rounded(p / total) @ values[:, None] * share)
        lse = library.where(seen, top + library.log(total), top - np.inf)
        lse = library.logaddexp(lse, sink)[..., 0]
        outs.append(out.swapaxes(1, 2).swapaxes(0, 1).reshape(len_q, heads_q, case.head_dims[1]))
        lses.append(lse.reshape(heads_q, len_q))
    return library.concatenate(outs), library.concatenate(lses, -1)


def strides(layout: str, *shape: int) -> tuple[int, ...]:
    """Of (tokens, heads, head_dim) or (pages, page_size, heads, head_dim), in elements."""
    tokens, heads, head_dim = shape[-3:]
    row = heads * head_dim
    token, head = {
        "dense": (row, head_dim),
        "gaps": (row + 32 * heads + 64, head_dim + 32),
        "odd": (row + 1, head_dim),
        "heads first": (head_dim, tokens * head_dim),
        "reversed": (-row, head_dim),
    }[layout]
    page = tokens * (row if layout == "heads first" else token)
    return (page, token, head, 1)[-len(shape) :]
