// src/api/overlap.hpp - whether arrays share elements.
#pragma once

#include "base/run_args.hpp"

namespace exactile {

/// Whether an element of `a` shares a byte with one of `b`. Exact where both step by the same
/// strides, as slices of one packed array do; else, and where one is not of rank 3, arrays whose
/// extents meet count as overlapping.
bool overlap(const ArrayRef& a, const ArrayRef& b);

/// Whether no element of `a` is another one's: each larger stride steps over all that the smaller
/// ones reach, and the smallest over a row. (Other layouts without overlap are not recognised.)
bool elements_are_distinct(const ArrayRef& a);

/// The same elements in the same places.
bool is_same_array(const ArrayRef& a, const ArrayRef& b);

}  // namespace exactile
