// src/api/array_checks.hpp - what is wrong with a caller's array, as "expected ..., got ..." or
// empty. The caller adds the name of the function.
#pragma once

#include <span>
#include <string>

#include "api/overlap.hpp"
#include "base/run_args.hpp"

namespace exactile {

/// "(5, 4, 64)", "(5,)".
inline std::string shape_text(std::span<const int64_t> sizes) {
  std::string text = "(";
  for (const int64_t size : sizes) text += (text.size() > 1 ? ", " : "") + std::to_string(size);
  return text + (sizes.size() == 1 ? ",)" : ")");
}

inline std::span<const int64_t> shape_of(const ArrayRef& array) {
  return {array.shape.data(), static_cast<std::size_t>(array.rank)};
}

inline std::string refuse_dtype(const ArrayRef& array, const std::string& name, Dtype dtype) {
  if (array.dtype == dtype) return "";
  return "expected " + name + " of dtype " + name_of(dtype, kDtypeNames) + ", got " +
         name_of(array.dtype, kDtypeNames);
}

/// `whose`: the array that the device is of.
inline std::string refuse_device(const ArrayRef& array, const std::string& name,
                                 const Device& device, const std::string& whose) {
  if (array.device == device) return "";
  return "expected " + name + " on the device of " + whose + ", " + to_string(device) + ", got " +
         to_string(array.device);
}

inline std::string refuse_rows(const ArrayRef& array, const std::string& name) {
  const int64_t stride = array.strides[array.rank - 1];
  if (!array.has_elements() || array.head_dim() <= 1 || stride == 1) return "";
  return "expected the last dimension of " + name + " to be contiguous, got a stride of " +
         std::to_string(stride) + " elements";
}

/// Of an array that is written.
inline std::string refuse_shared_elements(const ArrayRef& array, const std::string& name) {
  if (elements_are_distinct(array)) return "";
  const std::span<const int64_t> strides(array.strides.data(), shape_of(array).size());
  return "expected strides of " + name + " that lead to every element once, got " +
         shape_text(strides) + " for shape " + shape_text(shape_of(array));
}

}  // namespace exactile
