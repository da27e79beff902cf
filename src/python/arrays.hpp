// src/python/arrays.hpp - arrays of Python as the host code sees them: read once, checked, with
// exactile's messages.
#pragma once

#include <nanobind/nanobind.h>

#include "base/dlpack.hpp"
#include "base/run_args.hpp"

namespace exactile {

/// Which argument is read, and what for.
struct ArrayRequest {
  const char* name;  ///< "q", for messages
  Dtype planned;     ///< bfloat16: uint16 is taken as its storage; int32: nothing else is
  int rank = 3;
  int or_rank = -1;                                ///< taken too; -1: none
  const char* dims = "(tokens, heads, head_dim)";  ///< for messages
  bool writable = false;                           ///< refuse an array that is not
  bool or_int64 = false;                           ///< where int32 is `planned`
  const char* function = "varlen_prefill";         ///< begins the messages
};

/// The same of keys or values in pages.
inline ArrayRequest in_pages(ArrayRequest request) {
  request.rank = 4;
  request.dims = "(num_pages, page_size, heads, head_dim)";
  return request;
}

/// An array as it was when it was read. `ref` is valid while the Python object and `keep` live.
struct Array {
  ArrayRef ref;
  nanobind::object keep;
};

/// Reads a torch tensor through DLPack's C functions or its attributes, a numpy array through
/// __array_struct__, one of dpnp through __sycl_usm_array_interface__, any other through DLPack.
/// Throws std::invalid_argument or nanobind::type_error for what no kernel can use; exceptions
/// raised by the array itself pass through.
Array read_array(nanobind::handle x, const ArrayRequest& request);

// --- for the readers of one library each -------------------------------------------------------

/// What a library says of an array.
struct ArrayFields {
  void* data;
  int rank;
  const int64_t* shape;
  const int64_t* strides;  ///< in elements; null: C-contiguous
  Dtype dtype;
  Device device;
};

/// Refuses another rank than the request's, and no memory under a shape that needs some.
ArrayRef checked_ref(const ArrayFields& fields, nanobind::handle x, const ArrayRequest& request);

/// What a request takes: int32 (and int64), or float32, float16, bfloat16, or uint16 as storage of
/// bfloat16.
Dtype dtype_of(dlpack::DataType type, nanobind::handle x, const ArrayRequest& request);

/// "varlen_prefill: expected q <expected>, got <got>" for that function, a ValueError or a
/// TypeError.
[[noreturn]] void refuse(const ArrayRequest& request, const std::string& expected,
                         const std::string& got);
[[noreturn]] void refuse_type(const ArrayRequest& request, const std::string& expected,
                              const std::string& got);
[[noreturn]] void refuse_dtype(nanobind::handle x, const ArrayRequest& request);

/// A module that the process has imported, or null.
nanobind::handle imported(nanobind::handle name);

/// str(x).
std::string text_of(const nanobind::object& x);

/// Name of the class of x, for messages.
std::string class_name(nanobind::handle x);

/// DLPack's numbers, and torch's streams, for Python.
void bind_arrays(nanobind::module_& m);

}  // namespace exactile
