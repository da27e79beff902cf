// src/sycl/arrays.cpp - __sycl_usm_array_interface__, else DLPack.
#include "arrays.hpp"

#include <nanobind/ndarray.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>

#include "../arrays.hpp"

namespace nb = nanobind;

namespace exactile::sycl {
namespace {

constexpr const char* kInterface = "__sycl_usm_array_interface__";

/// "|f4" -> float of 32 bits.
nb::dlpack::dtype parse_typestr(const std::string& text) {
  constexpr std::string_view kKinds = "iuf?cb";  // numpy's kinds at DLPack's codes
  const auto code = static_cast<uint8_t>(kKinds.find(text.at(1)));
  return {.code = code, .bits = static_cast<uint8_t>(8 * std::stoi(text.substr(2))), .lanes = 1};
}

[[noreturn]] void refuse_read_only(const char* name) {
  throw std::invalid_argument(std::string("varlen_prefill: expected a writable ") + name +
                              ", got a read-only array");
}

ArrayRef from_interface(const nb::dict& fields, Dtype planned, const char* name, bool writable) {
  const auto [base, read_only] = nb::cast<std::pair<uint64_t, bool>>(fields["data"]);
  if (writable && read_only) refuse_read_only(name);
  const auto typestr = nb::cast<std::string>(fields["typestr"]);
  const nb::dlpack::dtype type = parse_typestr(typestr);
  const auto offset = nb::cast<int64_t>(fields["offset"]);  // in elements, as the strides
  const auto shape = nb::cast<std::vector<int64_t>>(fields["shape"]);
  std::vector<int64_t> strides(shape.size(), 1);
  if (fields["strides"].is_none()) {  // C-contiguous
    for (std::size_t i = shape.size(); i-- > 1;) strides[i - 1] = strides[i] * shape[i];
  } else {
    strides = nb::cast<std::vector<int64_t>>(fields["strides"]);
  }
  ArrayRef ref{
      .data = reinterpret_cast<void*>(base + offset * type.bits / 8),
      .shape = {},
      .strides = {},
      .rank = static_cast<int>(shape.size()),
      .dtype = dtype_of(type, planned, name),
      .device = {kDeviceOneApi, 0},
  };
  const std::size_t rank = std::min<std::size_t>(shape.size(), 3);
  std::copy_n(shape.begin(), rank, ref.shape.begin());
  std::copy_n(strides.begin(), rank, ref.strides.begin());
  return ref;
}

}  // namespace

ArrayRef usm_array_ref(nb::handle array, Dtype planned, const char* name, bool writable) {
  if (nb::hasattr(array, kInterface)) {
    return from_interface(nb::cast<nb::dict>(array.attr(kInterface)), planned, name, writable);
  }
  ArrayRef ref;
  if (nb::ndarray<> read_write; nb::try_cast(array, read_write)) {
    ref = array_ref(read_write, planned, name);
  } else if (nb::ndarray<nb::ro> read; nb::try_cast(array, read)) {
    if (writable) refuse_read_only(name);
    ref = array_ref(read, planned, name);
  } else {
    throw nb::type_error((std::string("varlen_prefill: expected ") + name +
                          " to be a dpnp array or an array with __dlpack__, got " +
                          nb::cast<std::string>(nb::str(array.type().attr("__name__"))))
                             .c_str());
  }
  if (ref.device.type == kDeviceOneApi) ref.device.id = 0;  // whose context it is says the runtime
  return ref;
}

}  // namespace exactile::sycl
