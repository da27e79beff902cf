// src/python/torch_arrays.cpp - reads tensors, and says why one cannot be read.
#include "python/torch_arrays.hpp"

#include <array>

namespace nb = nanobind;

namespace exactile {

namespace {

nb::object intern(const char* name) { return nb::steal(PyUnicode_InternFromString(name)); }

/// Interned names. Never freed: the interpreter is finalised first.
struct Names {
  nb::object data_ptr = intern("data_ptr"), shape = intern("shape"), stride = intern("stride"),
             dtype = intern("dtype"), get_device = intern("get_device"),
             requires_grad = intern("requires_grad"), is_neg = intern("is_neg"),
             is_inference = intern("is_inference"), current_level = intern("_current_level"),
             torch = intern("torch"), dynamo = intern("torch._dynamo"),
             eval_frame = intern("torch._C._dynamo.eval_frame"),
             set_eval_frame = intern("set_eval_frame");

  static const Names& get() {
    static const Names& names = *new Names;
    return names;
  }
};

nb::object call(nb::handle function) {
  nb::object result = nb::steal(PyObject_CallNoArgs(function.ptr()));
  if (!result.is_valid()) throw nb::python_error();
  return result;
}

/// DLPack's functions of a class of tensors; null where it has none of version 1.
const dlpack::ExchangeApi* find_exchange(nb::handle type) {
  constexpr const char* kName = "dlpack_exchange_api";
  const nb::object capsule = nb::getattr(type, "__dlpack_c_exchange_api__", nb::none());
  if (!PyCapsule_IsValid(capsule.ptr(), kName)) return nullptr;
  const auto* api =
      static_cast<const dlpack::ExchangeApi*>(PyCapsule_GetPointer(capsule.ptr(), kName));
  while (api && api->version.major != 1) api = api->previous;
  return api && api->view_of_object ? api : nullptr;
}

int64_t to_int(nb::handle value) {
  const long long result = PyLong_AsLongLong(value.ptr());
  if (result == -1 && PyErr_Occurred()) throw nb::python_error();
  return result;
}

std::array<int64_t, kMaxRank> first_values(nb::handle tuple) {
  std::array<int64_t, kMaxRank> values{};
  const Py_ssize_t size = PyTuple_Size(tuple.ptr());
  for (Py_ssize_t i = 0; i < size && i < kMaxRank; ++i) {
    values[i] = to_int(PyTuple_GetItem(tuple.ptr(), i));
  }
  return values;
}

}  // namespace

Torch::Torch(nb::handle torch)
    : tensor_type_(torch.attr("Tensor")),
      is_tracing_(torch.attr("_C").attr("_is_tracing")),
      is_grad_enabled_(torch.attr("is_grad_enabled")),
      forward_ad_(torch.attr("autograd").attr("forward_ad")),
      increment_version_(torch.attr("_C").attr("_increment_version")),
      is_wrapped_(torch.attr("_C").attr("_functorch").attr("is_functorch_wrapped_tensor")),
      exchange_(find_exchange(tensor_type_)) {
  for (int i = 0; i < kNumArrayDtypes; ++i) dtypes_[i] = torch.attr(kDtypeNames[i]);
  try {
    increment_version_(nb::make_tuple());
    increments_many_ = true;
  } catch (const nb::python_error&) {  // older: one tensor
  }
}

const Torch* Torch::loaded() {
  static const Torch* torch = nullptr;  // written with the GIL held
  if (torch) return torch;
  const nb::handle module = imported(Names::get().torch);
  if (!module.is_valid() || !nb::hasattr(module, "compile")) return nullptr;  // or half imported
  torch = new Torch(module);
  return torch;
}

bool Torch::is_true(nb::handle tensor, const nb::object& method) const {
  PyObject* const self = tensor.ptr();
  const nb::object result = nb::steal(PyObject_VectorcallMethod(method.ptr(), &self, 1, nullptr));
  if (!result.is_valid()) throw nb::python_error();
  return result.ptr() == Py_True;
}

ArrayRef Torch::read(nb::handle tensor, const ArrayRequest& request) const {
  const Names& names = Names::get();
  try {
    const bool needs_grad = tensor.attr(names.requires_grad).ptr() == Py_True;
    if (needs_grad && call(is_grad_enabled_).ptr() == Py_True) {
      refuse(request, "not to require grad while gradients are recorded",
             "a tensor that does: training is not supported yet (there is no backward pass); "
             "torch.no_grad() and torch.inference_mode() run inference");
    }
    if (is_true(tensor, names.is_neg)) {
      refuse(request, "without a pending negation", "a lazy view; pass resolve_neg() of it");
    }
    return exchange_ ? read_view(tensor, request) : read_attributes(tensor, request);
  } catch (nb::python_error& error) {
    if (!error.matches(PyExc_Exception)) throw;  // KeyboardInterrupt
    const std::string text = text_of(nb::borrow(error.value()));
    refuse_type(request, "to be a dense torch tensor that holds memory",
                kind_of(tensor, text.substr(0, text.find('\n'))));
  }
}

ArrayRef Torch::read_view(nb::handle tensor, const ArrayRequest& request) const {
  dlpack::Tensor view;
  if (exchange_->view_of_object(tensor.ptr(), &view)) throw nb::python_error();
  return checked_ref(
      {.data = view.data ? static_cast<char*>(view.data) + view.byte_offset : nullptr,
       .rank = view.rank,
       .shape = view.shape,
       .strides = view.strides,
       .dtype = dtype_of(view.dtype, tensor, request),
       .device = {view.device.type, view.device.id}},
      tensor, request);
}

ArrayRef Torch::read_attributes(nb::handle tensor, const ArrayRequest& request) const {
  const Names& names = Names::get();
  const nb::object dtype = tensor.attr(names.dtype);
  int which = 0;
  while (which < kNumArrayDtypes && !dtype.is(dtypes_[which])) ++which;
  const bool indices = request.planned == Dtype::kInt32;
  if (which == kNumArrayDtypes || (static_cast<Dtype>(which) == Dtype::kInt32) != indices) {
    refuse_dtype(tensor, request);
  }
  const std::string type = text_of(tensor.attr("device").attr("type"));
  Device device{kDeviceCpu, 0};
  if (type != "cpu") {
    device = {type == "cuda"  ? kDeviceCuda
              : type == "xpu" ? kDeviceOneApi
                              : 0,
              static_cast<int>(to_int(tensor.attr(names.get_device)()))};
    if (device.type == 0) refuse(request, "on a device that is supported", type);
  }
  const nb::object sizes = tensor.attr(names.shape);
  const auto shape = first_values(sizes);
  const auto strides = first_values(tensor.attr(names.stride)());
  return checked_ref({.data = reinterpret_cast<void*>(to_int(tensor.attr(names.data_ptr)())),
                      .rank = static_cast<int>(PyTuple_Size(sizes.ptr())),
                      .shape = shape.data(),
                      .strides = strides.data(),
                      .dtype = static_cast<Dtype>(which),
                      .device = device},
                     tensor, request);
}

/// `error`: what torch said.
std::string Torch::kind_of(nb::handle tensor, const std::string& error) const {
  const auto holds = [&](auto&& question) {
    try {
      return nb::cast<bool>(question());
    } catch (const std::exception&) {  // the kind of tensor that cannot answer
      return false;
    }
  };
  constexpr std::pair<const char*, const char*> kKinds[] = {
      {"is_meta", "a tensor on the meta device"}, {"is_nested", "a nested tensor"},
      {"is_quantized", "a quantized tensor"},     {"is_mkldnn", "a tensor in mkldnn's layout"},
      {"is_sparse", "a sparse tensor"},           {"is_sparse_csr", "a sparse tensor"}};
  if (holds([&] { return is_wrapped_(tensor); })) {
    return "one that torch.func (vmap, grad, jvp) has wrapped: there is no rule for these";
  }
  for (const auto& kind : kKinds) {
    if (holds([&] { return tensor.attr(kind.first); })) return kind.second;
  }
  return "a " + class_name(tensor) + " (" + error + ")";
}

void Torch::refuse_tracing(const char* function) const {
  if (call(is_tracing_).ptr() != Py_True) return;
  throw nb::type_error((std::string(function) +
                        ": expected a call outside torch.jit.trace, got one inside: its graph "
                        "would hold the result of this one call")
                           .c_str());
}

void Torch::refuse_tangents(std::initializer_list<nb::handle> tensors, const char* function) const {
  if (to_int(forward_ad_.attr(Names::get().current_level)) < 0) return;
  for (const nb::handle tensor : tensors) {
    if (!owns(tensor)) continue;
    if (!forward_ad_.attr("unpack_dual")(tensor).attr("tangent").is_none()) {
      throw nb::type_error((std::string(function) +
                            ": expected tensors without tangents, got a dual tensor: forward-mode "
                            "differentiation is not supported")
                               .c_str());
    }
  }
}

void Torch::will_write(nb::handle tensor) const {
  try {
    if (increments_many_) {
      increment_version_(nb::make_tuple(tensor));
    } else {
      increment_version_(tensor);
    }
  } catch (const nb::python_error&) {  // those made under inference_mode have no version
    if (!is_true(tensor, Names::get().is_inference)) throw;
  }
}

std::optional<uint64_t> Torch::current_stream(int device) const {
  if (!exchange_ || !exchange_->current_work_stream) return std::nullopt;
  void* stream = nullptr;
  if (exchange_->current_work_stream(kDeviceCuda, device, &stream)) throw nb::python_error();
  return reinterpret_cast<uint64_t>(stream);
}

nb::object suspend_compiler() {
  const Names& names = Names::get();
  if (!imported(names.dynamo).is_valid()) return nb::none();
  return imported(names.eval_frame).attr(names.set_eval_frame)(nb::none());
}

void resume_compiler(nb::handle hook) {
  const Names& names = Names::get();
  imported(names.eval_frame).attr(names.set_eval_frame)(hook);
}

}  // namespace exactile
