// src/jit/warnings.cpp - keeps one text for each topic.
#include "jit/warnings.hpp"

#include <atomic>
#include <deque>
#include <mutex>
#include <set>
#include <utility>

namespace exactile::jit {
namespace {

struct Warnings {
  std::mutex mutex;
  std::deque<std::string> texts;
  std::set<Topic> given;
  std::atomic<bool> any = false;  // read after every run

  static Warnings& get() {
    static Warnings& warnings = *new Warnings;  // a daemon thread may come after static destruction
    return warnings;
  }
};

}  // namespace

void warn_once(Topic topic, std::string text) {
  Warnings& warnings = Warnings::get();
  const std::scoped_lock lock(warnings.mutex);
  if (!warnings.given.insert(topic).second) return;
  warnings.texts.push_back(std::move(text));
  warnings.any = true;
}

std::string take_warning() {
  Warnings& warnings = Warnings::get();
  if (!warnings.any) return "";
  const std::scoped_lock lock(warnings.mutex);
  if (warnings.texts.empty()) return "";
  std::string text = std::move(warnings.texts.front());
  warnings.texts.pop_front();
  warnings.any = !warnings.texts.empty();
  return text;
}

}  // namespace exactile::jit
