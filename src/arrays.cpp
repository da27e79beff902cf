// src/arrays.cpp - dtypes of DLPack, attributes of torch.
#include "arrays.hpp"

#include <algorithm>
#include <stdexcept>

namespace nb = nanobind;

namespace exactile {
namespace {

/// DLPack's table of C functions (version 1.3), up to the one that is used here.
struct DlpackExchange {
  uint32_t major, minor;
  const DlpackExchange* previous;
  void* unused[3];
  int (*view)(void* tensor, nb::dlpack::dltensor* view);  ///< without a reference; -1: raised

  /// That of a class of tensors, or null.
  static const DlpackExchange* find(nb::handle type) {
    const nb::object capsule = nb::getattr(type, "__dlpack_c_exchange_api__", nb::none());
    if (!PyCapsule_IsValid(capsule.ptr(), "dlpack_exchange_api")) return nullptr;
    const auto* table = static_cast<const DlpackExchange*>(
        PyCapsule_GetPointer(capsule.ptr(), "dlpack_exchange_api"));
    while (table && table->major != 1) table = table->previous;
    return table && table->view ? table : nullptr;
  }
};

/// Interned names, and torch's dtypes. Made once, never freed: the interpreter goes first.
struct TorchNames {
  nb::object data_ptr = intern("data_ptr"), shape = intern("shape"), stride = intern("stride"),
             dtype = intern("dtype"), is_cuda = intern("is_cuda"),
             get_device = intern("get_device"), requires_grad = intern("requires_grad");
  nb::object dtypes[kNumDtypes];             // by Dtype
  const DlpackExchange* exchange = nullptr;  // of torch 2.10 and newer

  TorchNames() {
    const nb::object torch = nb::module_::import_("torch");  // it has made the tensor
    for (int i = 0; i < kNumDtypes; ++i) dtypes[i] = torch.attr(kDtypeNames[i]);
    exchange = DlpackExchange::find(torch.attr("Tensor"));
  }
  static nb::object intern(const char* name) { return nb::steal(PyUnicode_InternFromString(name)); }
};

[[noreturn]] void fail(const char* name, const std::string& expected, const std::string& got) {
  throw std::invalid_argument(std::string("varlen_prefill: expected ") + name + " " + expected +
                              ", got " + got);
}

int64_t to_int(nb::handle value) {
  const long long result = PyLong_AsLongLong(value.ptr());
  if (result == -1 && PyErr_Occurred()) throw nb::python_error();
  return result;
}

/// The first three of a tuple of integers.
void read(nb::handle tuple, int rank, std::array<int64_t, 3>& values) {
  for (int i = 0; i < std::min(rank, 3); ++i) values[i] = to_int(PyTuple_GetItem(tuple.ptr(), i));
}

}  // namespace

Dtype dtype_of(nb::dlpack::dtype dtype, Dtype planned, const char* name) {
  using Code = nb::dlpack::dtype_code;
  const auto is = [&](Code code, int bits) {
    return dtype.code == static_cast<uint8_t>(code) && dtype.bits == bits && dtype.lanes == 1;
  };
  if (is(Code::Float, 32)) return Dtype::kFloat32;
  if (is(Code::Float, 16)) return Dtype::kFloat16;
  if (is(Code::Bfloat, 16)) return Dtype::kBfloat16;
  if (is(Code::UInt, 16) && planned == Dtype::kBfloat16) return Dtype::kBfloat16;
  fail(name, "of dtype float32, float16 or bfloat16",
       "DLPack code " + std::to_string(dtype.code) + " with " + std::to_string(dtype.bits) +
           " bits");
}

ArrayRef torch_array_ref(nb::handle tensor, const char* name) {
  static const TorchNames& names = *new TorchNames;
  if (!nb::hasattr(tensor, names.is_cuda) || !nb::cast<bool>(tensor.attr(names.is_cuda))) {
    fail(name, "to be a torch tensor on the device of q", nb::repr(tensor.type()).c_str());
  }
  if (nb::cast<bool>(tensor.attr(names.requires_grad))) {
    fail(name, "not to require grad (there is no backward pass)",
         "a tensor that does; pass it detached");
  }
  if (names.exchange) {  // saves 0.3 us a tensor
    nb::dlpack::dltensor view;
    if (names.exchange->view(tensor.ptr(), &view)) throw nb::python_error();
    ArrayRef ref{
        .data = static_cast<char*>(view.data) + view.byte_offset,
        .shape = {},
        .strides = {},
        .rank = view.ndim,
        .dtype = dtype_of(view.dtype, Dtype::kFloat32, name),
        .device = {view.device.device_type, view.device.device_id},
    };
    std::copy_n(view.shape, std::min(ref.rank, 3), ref.shape.begin());
    std::copy_n(view.strides, std::min(ref.rank, 3), ref.strides.begin());
    return ref;
  }
  const nb::object dtype = tensor.attr(names.dtype);
  int which = 0;
  while (which < kNumDtypes && !dtype.is(names.dtypes[which])) ++which;
  if (which == kNumDtypes) {
    fail(name, "of dtype float32, float16 or bfloat16", nb::str(dtype).c_str());
  }
  const nb::object shape = tensor.attr(names.shape), strides = tensor.attr(names.stride)();
  ArrayRef ref{
      .data = reinterpret_cast<void*>(to_int(tensor.attr(names.data_ptr)())),
      .shape = {},
      .strides = {},
      .rank = static_cast<int>(PyTuple_Size(shape.ptr())),
      .dtype = static_cast<Dtype>(which),
      .device = {kDeviceCuda, static_cast<int>(to_int(tensor.attr(names.get_device)()))},
  };
  read(shape, ref.rank, ref.shape);
  read(strides, ref.rank, ref.strides);
  return ref;
}

}  // namespace exactile
