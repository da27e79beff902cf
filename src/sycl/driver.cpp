// src/sycl/driver.cpp - exactile-sycl's table, and its failures as exceptions.
#include "sycl/driver.hpp"

#include <atomic>
#include <new>
#include <stdexcept>
#include <string>

namespace exactile::sycl {
namespace {

std::atomic<const RuntimeTable*> loaded = nullptr;

}  // namespace

void set_runtime(const RuntimeTable* table) {
  if (!table || table->version != kTableVersion) {
    throw std::runtime_error("exactile: sycl: expected an exactile-sycl with interface " +
                             std::to_string(kTableVersion) + ", got one with " +
                             (table ? std::to_string(table->version) : "none") +
                             ": install exactile and exactile-sycl of the same version");
  }
  loaded = table;
}

const RuntimeTable& runtime() {
  const RuntimeTable* const table = loaded;
  if (!table) throw std::runtime_error("exactile: sycl: the SYCL runtime is not loaded");
  if (table->was_forked()) {
    throw std::runtime_error(
        "exactile: sycl: this process was forked from one that had run kernels already, and the "
        "SYCL runtime's threads are not in it: fork before the first run, or start processes by "
        "'spawn'");
  }
  return *table;
}

void check(const RuntimeTable& runtime, Status status) {
  if (status == Status::kNoMemory) throw std::bad_alloc();
  if (status == Status::kFailed) throw std::runtime_error(runtime.last_error());
}

}  // namespace exactile::sycl
