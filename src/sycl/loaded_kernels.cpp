// src/sycl/loaded_kernels.cpp - a kernel's entry, found by comparison: a process has few.
#include "sycl/loaded_kernels.hpp"

#include <deque>
#include <mutex>
#include <optional>
#include <tuple>

namespace exactile::sycl {
namespace {

struct Entry {
  KernelSpec spec;  // but for `user`
  std::optional<UserScheduler> user;
  const Place* place;
  std::mutex loading;
  const Kernel* kernel = nullptr;

  bool is_of(const KernelSpec& other, const Place* there) const {
    const auto fields = [](const KernelSpec& s) {
      return std::tuple(s.kernel, s.dtype, s.head_dim, s.head_dim_v, s.scheduler, s.count);
    };
    const bool same_policy = other.user ? user && *user == *other.user : !user;
    return place == there && fields(spec) == fields(other) && same_policy;
  }
};

struct Entries {
  std::mutex mutex;
  std::deque<Entry> all;  // which stay where they are
  KernelLoader loader = nullptr;

  /// Never freed: launches may go on at exit.
  static Entries& get() {
    static auto& entries = *new Entries;
    return entries;
  }
};

Entry& entry_of(const KernelSpec& spec, const Place* place) {
  Entries& entries = Entries::get();
  const std::scoped_lock lock(entries.mutex);
  for (Entry& entry : entries.all) {
    if (entry.is_of(spec, place)) return entry;
  }
  Entry& entry = entries.all.emplace_back();
  entry.spec = spec;
  entry.spec.user = nullptr;
  if (spec.user) entry.user = *spec.user;
  entry.place = place;
  return entry;
}

}  // namespace

void set_kernel_loader(KernelLoader loader) { Entries::get().loader = loader; }

const Kernel* loaded_kernel(const Queue* queue, const Place* place, const KernelSpec& spec) {
  Entry& entry = entry_of(spec, place);
  const std::scoped_lock lock(entry.loading);
  if (!entry.kernel) entry.kernel = Entries::get().loader(queue, spec);
  return entry.kernel;
}

}  // namespace exactile::sycl
