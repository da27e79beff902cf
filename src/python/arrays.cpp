// src/python/arrays.cpp - numpy's arrays and DLPack's; which library an array is of.
#include "python/arrays.hpp"

#include <nanobind/stl/optional.h>

#include <algorithm>
#include <iterator>
#include <optional>
#include <stdexcept>

#include "python/torch_arrays.hpp"
#include "python/usm_arrays.hpp"

namespace nb = nanobind;

namespace exactile {
namespace {

/// numpy's array interface, C side: what __array_struct__ holds.
struct ArrayStruct {
  int two;
  int rank;
  char kind;
  int item_bytes;
  int flags;
  Py_ssize_t* shape;
  Py_ssize_t* strides;  ///< in bytes
  void* data;
  PyObject* description;
  static constexpr int kAligned = 0x100, kWritable = 0x400;
};

/// numpy's types and dtypes. Never freed: the interpreter is finalised first.
struct Numpy {
  nb::object array_type, float32, float16, uint16, int32, int64;
  nb::object bfloat16;  ///< that of ml_dtypes; null until one is seen
  nb::object dtype = intern("dtype"), array_struct = intern("__array_struct__");

  static Numpy& get() {
    static Numpy& numpy = *new Numpy;
    return numpy;
  }
  bool owns(nb::handle x) const {
    return PyObject_TypeCheck(x.ptr(), reinterpret_cast<PyTypeObject*>(array_type.ptr()));
  }

 private:
  Numpy() {
    const nb::object numpy = nb::module_::import_("numpy");
    array_type = numpy.attr("ndarray");
    float32 = numpy.attr("dtype")("float32");
    float16 = numpy.attr("dtype")("float16");
    uint16 = numpy.attr("dtype")("uint16");
    int32 = numpy.attr("dtype")("int32");
    int64 = numpy.attr("dtype")("int64");
  }
  static nb::object intern(const char* name) { return nb::steal(PyUnicode_InternFromString(name)); }
};

/// Of a numpy array. Its dtypes are few objects; others are told by name, in native byte order.
Dtype numpy_dtype(nb::handle x, const ArrayRequest& request) {
  Numpy& numpy = Numpy::get();
  const nb::object dtype = x.attr(numpy.dtype);
  if (request.planned == Dtype::kInt32) {
    if (dtype.equal(numpy.int32)) return Dtype::kInt32;
    if (request.or_int64 && dtype.equal(numpy.int64)) return Dtype::kInt64;
    refuse_dtype(x, request);
  }
  if (dtype.is(numpy.float32)) return Dtype::kFloat32;
  if (dtype.is(numpy.float16)) return Dtype::kFloat16;
  const bool takes_storage = request.planned == Dtype::kBfloat16;
  if (dtype.is(numpy.uint16) && takes_storage) return Dtype::kBfloat16;
  if (dtype.is(numpy.bfloat16)) return Dtype::kBfloat16;
  const std::string name = text_of(dtype.attr("name"));
  if (!nb::cast<bool>(dtype.attr("isnative"))) {
    refuse(request, "in native byte order", "dtype " + text_of(dtype));
  }
  if (name == "bfloat16") {
    numpy.bfloat16 = dtype;
    return Dtype::kBfloat16;
  }
  if (name == "float32") return Dtype::kFloat32;
  if (name == "float16") return Dtype::kFloat16;
  if (name == "uint16" && takes_storage) return Dtype::kBfloat16;
  refuse_dtype(x, request);
}

Array read_numpy(nb::handle x, const ArrayRequest& request) {
  if (Py_TYPE(x.ptr()) != reinterpret_cast<PyTypeObject*>(Numpy::get().array_type.ptr())) {
    const nb::handle masked = imported(nb::str("numpy.ma"));
    if (masked.is_valid() && nb::isinstance(x, masked.attr("MaskedArray"))) {
      refuse_type(request, "without a mask (its masked elements would be used)", "a masked array");
    }
  }
  const Dtype dtype = numpy_dtype(x, request);
  nb::object capsule = x.attr(Numpy::get().array_struct);
  const auto* const array =
      static_cast<const ArrayStruct*>(PyCapsule_GetPointer(capsule.ptr(), nullptr));
  if (!array) throw nb::python_error();
  if (request.writable && !(array->flags & ArrayStruct::kWritable)) {
    refuse(request, "to be writable", "a read-only array");
  }
  int64_t shape[kMaxRank] = {}, strides[kMaxRank] = {};
  bool whole = array->flags & ArrayStruct::kAligned;
  for (int i = 0; i < array->rank && i < kMaxRank; ++i) {
    shape[i] = array->shape[i];
    strides[i] = array->strides[i] / array->item_bytes;
    whole = whole && (array->shape[i] < 2 || array->strides[i] % array->item_bytes == 0);
  }
  if (!whole) {
    refuse(request, "to begin and step by whole elements", "an array of unaligned ones");
  }
  const ArrayFields fields{.data = array->data,
                           .rank = array->rank,
                           .shape = array->rank > kMaxRank ? nullptr : shape,
                           .strides = strides,
                           .dtype = dtype,
                           .device = {kDeviceCpu, 0}};
  return {checked_ref(fields, x, request), std::move(capsule)};
}

/// A DLPack capsule, with the flags that version 1 has where the library knows them.
nb::object capsule_of(nb::handle x) {
  const nb::object method = x.attr("__dlpack__");
  try {
    return method(nb::arg("max_version") = nb::make_tuple(1, 1));
  } catch (nb::python_error& error) {
    if (!error.matches(PyExc_TypeError)) throw;  // older libraries know no max_version
  }
  return method();
}

Array read_dlpack(nb::handle x, const ArrayRequest& request) {
  if (!nb::hasattr(x, "__dlpack__") || !nb::hasattr(x, "__dlpack_device__")) {
    refuse_type(request, "to be a numpy array, a torch tensor or an array with __dlpack__",
                class_name(x));
  }
  const std::string module = text_of(x.type().attr("__module__"));
  if (request.writable && (module.starts_with("jax") || module.starts_with("jaxlib"))) {
    refuse(request, "to be writable", "an array of JAX, whose arrays never change");
  }
  nb::object capsule = capsule_of(x);
  const dlpack::Tensor* tensor = nullptr;
  bool read_only = false;
  if (PyCapsule_IsValid(capsule.ptr(), "dltensor_versioned")) {
    const auto* const managed = static_cast<const dlpack::ManagedTensorVersioned*>(
        PyCapsule_GetPointer(capsule.ptr(), "dltensor_versioned"));
    if (managed->version.major == 1) tensor = &managed->tensor;
    read_only = managed->flags & dlpack::ManagedTensorVersioned::kReadOnly;
  } else if (PyCapsule_IsValid(capsule.ptr(), "dltensor")) {
    tensor = static_cast<const dlpack::Tensor*>(PyCapsule_GetPointer(capsule.ptr(), "dltensor"));
  }
  if (!tensor) {
    refuse_type(request, "to give a DLPack capsule of version 0 or 1", class_name(capsule));
  }
  if (request.writable && read_only) refuse(request, "to be writable", "a read-only array");
  const ArrayFields fields{
      .data = tensor->data ? static_cast<char*>(tensor->data) + tensor->byte_offset : nullptr,
      .rank = tensor->rank,
      .shape = tensor->shape,
      .strides = tensor->strides,
      .dtype = dtype_of(tensor->dtype, x, request),
      .device = {tensor->device.type, tensor->device.id}};
  return {checked_ref(fields, x, request), std::move(capsule)};
}

std::string message(const ArrayRequest& request, const std::string& expected,
                    const std::string& got) {
  return std::string(request.function) + ": expected " + request.name + " " + expected + ", got " +
         got;
}

std::string shape_text(nb::handle x) { return text_of(nb::tuple(nb::object(x.attr("shape")))); }

}  // namespace

void refuse(const ArrayRequest& request, const std::string& expected, const std::string& got) {
  throw std::invalid_argument(message(request, expected, got));
}

void refuse_type(const ArrayRequest& request, const std::string& expected, const std::string& got) {
  throw nb::type_error(message(request, expected, got).c_str());
}

void refuse_dtype(nb::handle x, const ArrayRequest& request) {
  constexpr std::size_t kLongest = 80;  // a structured dtype names all of its fields
  std::string name = text_of(x.attr("dtype"));
  if (name.starts_with("torch.")) name.erase(0, 6);
  if (name.size() > kLongest) name = name.substr(0, kLongest) + "...";
  if (name == "uint16") name += " (with dtype=\"bfloat16\" it is its storage)";
  const bool indices = request.planned == Dtype::kInt32;
  const char* const integers = request.or_int64 ? "of dtype int32 or int64" : "of dtype int32";
  refuse(request, indices ? integers : "of dtype float32, float16 or bfloat16", name);
}

nb::handle imported(nb::handle name) {
  PyObject* const module = PyDict_GetItemWithError(PyImport_GetModuleDict(), name.ptr());
  if (!module && PyErr_Occurred()) throw nb::python_error();
  return module;
}

std::string text_of(const nb::object& x) { return nb::str(x).c_str(); }

std::string class_name(nb::handle x) { return text_of(x.type().attr("__name__")); }

Dtype dtype_of(dlpack::DataType type, nb::handle x, const ArrayRequest& request) {
  const auto known = std::ranges::find(dlpack::kDataTypes, type);
  const auto dtype = static_cast<Dtype>(known - std::begin(dlpack::kDataTypes));
  const bool taken = request.planned == Dtype::kInt32
                         ? dtype == Dtype::kInt32 || (request.or_int64 && dtype == Dtype::kInt64)
                         : static_cast<int>(dtype) < kNumDtypes;
  if (known != std::end(dlpack::kDataTypes) && taken) return dtype;
  if (type == dlpack::kUInt16 && request.planned == Dtype::kBfloat16) return Dtype::kBfloat16;
  refuse_dtype(x, request);
}

ArrayRef checked_ref(const ArrayFields& fields, nb::handle x, const ArrayRequest& request) {
  if (fields.rank != request.rank && fields.rank != request.or_rank) {
    refuse(request, "of rank " + std::to_string(request.rank) + " " + request.dims,
           "shape " + shape_text(x));
  }
  ArrayRef ref{.data = fields.data,
               .rank = fields.rank,
               .shape = {1, 1, 1, 1},
               .strides = {1, 1, 1, 1},
               .dtype = fields.dtype,
               .device = fields.device};
  if (ref.device.type == kDeviceOneApi) ref.device.id = 0;  // which it is says its context
  std::copy_n(fields.shape, fields.rank, ref.shape.begin());
  if (fields.strides) {
    std::copy_n(fields.strides, fields.rank, ref.strides.begin());
  } else {
    for (int i = fields.rank - 1; i-- > 0;) ref.strides[i] = ref.strides[i + 1] * ref.shape[i + 1];
  }
  if (!ref.data && ref.has_elements()) {
    refuse_type(request, "to hold memory",
                "a " + class_name(x) + " of shape " + shape_text(x) + " at a null pointer");
  }
  return ref;
}

Array read_array(nb::handle x, const ArrayRequest& request) {
  if (const Torch* const torch = Torch::loaded(); torch && torch->owns(x)) {
    return {torch->read(x, request), nb::object()};
  }
  if (Numpy::get().owns(x)) return read_numpy(x, request);
  if (sycl::has_interface(x)) return {sycl::read_interface(x, request), nb::object()};
  return read_dlpack(x, request);
}

void bind_arrays(nb::module_& m) {
  using namespace nb::literals;
  m.attr("DEVICE_CPU") = kDeviceCpu;
  m.attr("DEVICE_CUDA") = kDeviceCuda;
  m.attr("DEVICE_CUDA_MANAGED") = kDeviceCudaManaged;
  m.attr("DEVICE_ONEAPI") = kDeviceOneApi;
  nb::dict types;  // (code, bits) by dtype
  const auto add = [&](const char* name, dlpack::DataType type) {
    types[name] = nb::make_tuple(static_cast<int>(type.code), type.bits);
  };
  for (int i = 0; i < kNumDtypes; ++i) add(kDtypeNames[i], dlpack::kDataTypes[i]);
  add("uint16", dlpack::kUInt16);
  m.attr("DLPACK_TYPES") = types;
  m.def(
      "torch_stream",
      [](int device) -> std::optional<uint64_t> {
        const Torch* const torch = Torch::loaded();
        return torch ? torch->current_stream(device) : std::nullopt;
      },
      "device"_a);
}

}  // namespace exactile
