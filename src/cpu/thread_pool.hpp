// src/cpu/thread_pool.hpp - the threads of this process, which all runs share.
//
// A run is tiles that any number of threads can compute. Its caller always works on it, so a short
// run waits for no other. Helpers, threads that are started on first need and kept, go to the run
// that has fewest of them; while there are several runs they look anew every few milliseconds.
// Which thread computes a tile never changes its bits.
//
// An error on any thread ends the run: each thread stops after its tile, and the error is thrown to
// the caller when the last has stopped. So does what the caller's `check` throws: Ctrl-C.
//
// The pool is never destroyed: at exit its threads may still compute. A forked child, in which they
// do not exist, makes a pool of its own; nothing here waits for a lock that the parent held.
#pragma once

#include <chrono>
#include <functional>

namespace exactile::cpu {

/// More threads than any machine has processors; a run gets no more.
inline constexpr int kMaxThreads = 1024;

/// One stay of one thread with a run.
class Turn {
 public:
  virtual ~Turn() = default;
  /// Asked between tiles: the thread is wanted elsewhere, or the run has failed.
  virtual bool is_over() const = 0;
  /// The run has failed: what is begun need not be finished.
  virtual bool has_failed() const = 0;
  /// The run's caller has the turn: it is the thread that always comes back.
  virtual bool is_callers() const = 0;
};

struct Run {
  int threads;  ///< at most, the caller's among them
  /// Computes tiles until none is left (false) or the turn is over (true). Several threads call it
  /// at a time, each as often as needed; what it throws fails the run.
  std::function<bool(const Turn&)> compute;
  /// Called by the caller, between tiles, about twenty times a second; may throw. Or null.
  void (*check)() = nullptr;
};

/// Returns when all tiles are computed. Throws what a thread has thrown, and std::runtime_error,
/// before anything is computed, when a thread cannot be started.
void run_on_threads(const Run& run);

}  // namespace exactile::cpu
