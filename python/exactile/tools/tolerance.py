"""Tolerance: how far from float64 a result may be. The benchmarks and the tests judge by this."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from exactile.tools.reference import counted_rows, lengths_of, reference, widened

_HALF_ULP = {"float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}
"""Largest relative error of rounding to a dtype."""

_HALF_STEP = {"float32": 2.0**-126, "float16": 2.0**-25, "bfloat16": 2.0**-126}
"""Largest error of rounding to a dtype near 0; float32 and bfloat16 may lose their subnormals."""

Results = tuple[npt.NDArray[Any], npt.NDArray[Any]]
"""out, (rows, num_heads_q, head_dim_v), and lse, (num_heads_q, rows); uint16: bfloat16 storage."""


@dataclass(frozen=True)
class Verification:
    """Rows of a run against the float64 reference."""

    rows: int
    max_error: float
    """Largest |out - reference|."""
    of_tolerance: float
    """Largest error of out or lse as a fraction of its tolerance."""

    @property
    def passed(self) -> bool:
        """Whether every error is within its tolerance; NaN is not."""
        return self.of_tolerance <= 1


def compare(
    got: Results,
    q: npt.NDArray[Any],
    k: npt.NDArray[Any],
    v: npt.NDArray[Any],
    cu_seqlens_q: npt.ArrayLike,
    cu_seqlens_k: npt.ArrayLike | None,
    *,
    dtype: str,
    rows: npt.ArrayLike | None = None,
    **options: Any,
) -> Verification:
    """Compare a run with the reference.

    Parameters
    ----------
    got : (ndarray, ndarray)
        out and lse of all tokens; only those that count are looked at.
    q, k, v, cu_seqlens_q, cu_seqlens_k, **options
        What was run, as for `reference`.
    dtype : {"float32", "float16", "bfloat16"}
        That of the run.
    rows : array_like of int, (n, 2), optional
        (sequence, row of that sequence) pairs to look at; default: all that count.

    Returns
    -------
    Verification
    """
    lengths = lengths_of(
        cu_seqlens_q,
        cu_seqlens_k,
        options.get("seqused_q"),
        options.get("seqused_k"),
        paged=options.get("block_table") is not None,
    )
    pairs = counted_rows(lengths) if rows is None else np.asarray(rows, np.int64).reshape(-1, 2)
    want, same_dtype = (
        reference(
            *(q, k, v, cu_seqlens_q, cu_seqlens_k), rows=pairs, compute_dtype=compute, **options
        )
        for compute in ("float64", dtype)
    )
    sequences, row = pairs.T
    tokens = lengths.start_q[sequences] + row
    chosen = got[0][tokens], got[1][:, tokens]
    return judge(chosen, want, same_dtype, lengths.len_k[sequences], dtype)


def judge(
    got: Results, want: Results, same_dtype: Results, num_keys: npt.ArrayLike, dtype: str
) -> Verification:
    """Judge rows that were computed three times.

    Parameters
    ----------
    got : (ndarray, ndarray)
        Of the run.
    want : (ndarray, ndarray)
        In float64.
    same_dtype : (ndarray, ndarray)
        In plain numpy or torch: float32 with probabilities and out rounded to `dtype`.
    num_keys : array_like of int, (rows,)
        Keys of each row's sequence.
    dtype : {"float32", "float16", "bfloat16"}
        That of the run.

    Returns
    -------
    Verification

    Notes
    -----
    The tolerance of a row is relative to the row's largest value, and derived: twice the largest
    relative error that `same_dtype` has in any of these rows, since in a single one it may be
    small by luck, plus a floor. So what costs float32 precision (a softcap, which multiplies the
    error of tanh; a bias that ALiBi takes off; a sink far from the scores) is tolerated as far as
    it does (measured: up to 0.8 of the tolerance, as without it); pages and lengths add nothing.
    The floor:

    - out: one half ulp of the dtype, since both may fall on either side of a rounding boundary, and
      32 + 2 sqrt(keys) of float32, since sums over keys run in sequence (measured: 0.75 sqrt(keys)
      from 1,024 to 131,072 keys);
    - lse: 32 half ulps of float32 (measured: 13), and 1/32 of the dtype, since exp need not be more
      precise than the probabilities (measured: 1/54 in bfloat16).

    Beside a sink out may be as small as its dtype goes, so half a step of the dtype near 0 is
    tolerated and counts as no error of `same_dtype`.
    """
    error = _row_errors((widened(got[0]), widened(got[1])), want)
    half_ulp = _HALF_ULP["float32"]
    floor_out = half_ulp * (32 + 2 * np.sqrt(num_keys)) + _HALF_ULP[dtype]
    floor_lse = half_ulp * 32 + _HALF_ULP[dtype] / 32
    floor = np.stack([floor_out, np.full_like(floor_out, floor_lse)])
    scales = _row_scales(*want)
    half_step = np.array([[_HALF_STEP[dtype]], [0]])
    with np.errstate(divide="ignore", invalid="ignore"):
        error_of_dtype = np.maximum(_row_errors(same_dtype, want) - half_step, 0)
        relative = np.where(scales > 0, error_of_dtype / scales, 0)
        tolerance = scales * (2 * relative.max(axis=1, keepdims=True, initial=0) + floor)
        tolerance += half_step
        of_tolerance = np.where(error == 0, 0, error / tolerance)
    return Verification(
        rows=len(want[0]),
        max_error=float(error[0].max(initial=0)),
        of_tolerance=float(of_tolerance.max(initial=0)),
    )


def _row_errors(got: Results, want: Results) -> npt.NDArray[np.float64]:
    """Largest difference of out and of lse in each row, (2, rows); equal infinities differ by 0."""
    with np.errstate(invalid="ignore"):
        out, lse = (np.where(x == y, 0, np.abs(x - y)) for x, y in zip(got, want, strict=True))
    return np.stack([out.max(axis=(1, 2), initial=0), lse.max(axis=0, initial=0)])


def _row_scales(out: Any, lse: Any) -> npt.NDArray[np.float64]:
    """Magnitude of out and of lse in each row, (2, rows); that of lse at least 1."""
    lse = np.where(np.isfinite(lse), np.abs(lse), 0)
    return np.stack([np.abs(out).max(axis=(1, 2), initial=0), lse.max(axis=0, initial=1)])
