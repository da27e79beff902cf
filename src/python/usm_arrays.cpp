// src/python/usm_arrays.cpp - reads __sycl_usm_array_interface__.
#include "python/usm_arrays.hpp"

#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

namespace nb = nanobind;

namespace exactile::sycl {
namespace {

constexpr const char* kInterface = "__sycl_usm_array_interface__";

/// "|f4" -> float of 32 bits.
dlpack::DataType parse_typestr(const std::string& text) {
  constexpr std::string_view kKinds = "iuf??cb";  // numpy's kinds at DLPack's codes
  const auto code = static_cast<dlpack::TypeCode>(kKinds.find(text.at(1)));
  return {.code = code, .bits = static_cast<uint8_t>(8 * std::stoi(text.substr(2))), .lanes = 1};
}

}  // namespace

/// Looks at the class: a look at the array would make all that the interface says of it.
bool has_interface(nb::handle x) { return nb::hasattr(x.type(), kInterface); }

ArrayRef read_interface(nb::handle x, const ArrayRequest& request) {
  const auto fields = nb::cast<nb::dict>(x.attr(kInterface));
  const auto [base, read_only] = nb::cast<std::pair<uint64_t, bool>>(fields["data"]);
  if (request.writable && read_only) refuse(request, "to be writable", "a read-only array");
  const dlpack::DataType type = parse_typestr(nb::cast<std::string>(fields["typestr"]));
  const auto offset = nb::cast<int64_t>(fields["offset"]);  // in elements, as the strides
  const auto shape = nb::cast<std::vector<int64_t>>(fields["shape"]);
  std::vector<int64_t> strides;
  if (!fields["strides"].is_none()) strides = nb::cast<std::vector<int64_t>>(fields["strides"]);
  return checked_ref(
      {.data = base ? reinterpret_cast<void*>(base + offset * type.bits / 8) : nullptr,
       .rank = static_cast<int>(shape.size()),
       .shape = shape.data(),
       .strides = strides.empty() ? nullptr : strides.data(),
       .dtype = dtype_of(type, x, request),
       .device = {kDeviceOneApi, 0}},
      x, request);
}

}  // namespace exactile::sycl
