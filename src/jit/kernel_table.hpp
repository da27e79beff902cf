// src/jit/kernel_table.hpp - the kernels that are loaded, by spec.
#pragma once

#include <map>
#include <mutex>
#include <optional>

namespace exactile::jit {

/// Thread-safe. Only calls for the same kernel wait while it is compiled.
template <class Spec, class Kernel>
class KernelTable {
 public:
  /// load() makes what is not there yet. What it throws passes through, and the next call tries
  /// again. The reference lives as long as the table.
  template <class Load>
  const Kernel& get(const Spec& spec, Load load) {
    Entry& entry = entry_of(spec);
    const std::scoped_lock lock(entry.mutex);
    if (!entry.kernel) entry.kernel.emplace(load());
    return *entry.kernel;
  }

 private:
  struct Entry {
    std::mutex mutex;
    std::optional<Kernel> kernel;
  };
  Entry& entry_of(const Spec& spec) {
    const std::scoped_lock lock(mutex_);
    return entries_[spec];  // stays where it is
  }

  std::mutex mutex_;
  std::map<Spec, Entry> entries_;
};

}  // namespace exactile::jit
