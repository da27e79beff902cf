// src/python/array_reader.hpp - reads the arrays of one call, and keeps what keeps them.
#pragma once

#include <utility>

#include "python/arrays.hpp"

namespace exactile {

class ArrayReader {
 public:
  /// `function`: begins the messages.
  explicit ArrayReader(const char* function) : function_(function) {}

  ArrayRef read(nanobind::handle x, ArrayRequest request) {
    request.function = function_;
    Array array = read_array(x, request);
    kept_.append(x);
    if (array.keep.is_valid()) kept_.append(array.keep);  // a capsule may hold a copy of its own
    return array.ref;
  }

  /// What keeps the arrays alive.
  nanobind::list take() { return std::move(kept_); }

 private:
  const char* function_;
  nanobind::list kept_;
};

}  // namespace exactile
