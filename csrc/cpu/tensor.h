// Tensors as arguments of a binding: a function of ops.h that takes Addresses is given tensors (None: 0) or numbers.
// Where torch offers DLPack's C exchange API an address costs 30 ns instead of the 200 of a call of data_ptr().
#pragma once

#include <pybind11/pybind11.h>

#include <utility>
#include <vector>

#include "ops.h"

namespace ssl_fast {

// DLPack's C structures as far as they are read here (github.com/dmlc/dlpack, version 1.3).
namespace dlpack {
struct Tensor {
  void* data;
  std::int32_t device_type, device_id, num_dims;
  std::uint8_t type_code, bits;
  std::uint16_t lanes;
  std::int64_t *shape, *strides;
  std::uint64_t byte_offset;
};
struct ExchangeAPI {
  std::uint32_t major, minor;
  void *previous, *allocate, *managed_from_object, *managed_to_object;
  int (*tensor_from_object)(void* object, Tensor* out);  // may be null
};
}  // namespace dlpack

// The exchange API of a type of tensors, or null. Called with the GIL; the types seen are a handful.
inline const dlpack::ExchangeAPI* exchange_api(PyTypeObject* type) {
  static std::vector<std::pair<PyTypeObject*, const dlpack::ExchangeAPI*>> seen;
  for (const auto& [known, api] : seen) {
    if (known == type) return api;
  }
  const dlpack::ExchangeAPI* api = nullptr;
  const auto offered =
      pybind11::getattr(reinterpret_cast<PyObject*>(type), "__dlpack_c_exchange_api__", pybind11::none());
  if (PyCapsule_IsValid(offered.ptr(), "dlpack_exchange_api")) {
    api = static_cast<const dlpack::ExchangeAPI*>(PyCapsule_GetPointer(offered.ptr(), "dlpack_exchange_api"));
    if (api->major != 1 || api->tensor_from_object == nullptr) api = nullptr;
  }
  Py_INCREF(type);
  seen.emplace_back(type, api);
  return api;
}

// What stands in a binding's signature for an Address.
struct TensorAddress {
  Address value = 0;
  operator Address() const { return value; }
};

template <typename T>
struct ArgumentOf {
  using type = T;
};
template <>
struct ArgumentOf<Address> {
  using type = TensorAddress;
};

template <typename Result, typename... Args>
auto taking_tensors(Result (*function)(Args...)) {
  return [function](const typename ArgumentOf<Args>::type&... args) -> Result { return function(args...); };
}

}  // namespace ssl_fast

template <>
struct pybind11::detail::type_caster<ssl_fast::TensorAddress> {
  PYBIND11_TYPE_CASTER(ssl_fast::TensorAddress, const_name("Tensor | int | None"));
  bool load(handle from, bool) {
    if (from.is_none()) return true;
    if (!PyLong_Check(from.ptr())) {
      if (const auto* api = ssl_fast::exchange_api(Py_TYPE(from.ptr()))) {
        ssl_fast::dlpack::Tensor found;
        if (api->tensor_from_object(from.ptr(), &found) != 0) throw error_already_set();
        value.value = reinterpret_cast<ssl_fast::Address>(found.data) + found.byte_offset;
        return true;
      }
      value.value = from.attr("data_ptr")().cast<ssl_fast::Address>();
      return true;
    }
    value.value = PyLong_AsUnsignedLongLong(from.ptr());
    return !PyErr_Occurred();
  }
};
