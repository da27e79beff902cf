// src/cpu/thread_pool.cpp - starts helper threads and gives them to runs.
#include "cpu/thread_pool.hpp"

#include <pthread.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <exception>
#include <list>
#include <mutex>
#include <stdexcept>
#include <string>
#include <system_error>
#include <thread>

namespace exactile::cpu {
namespace {

using Clock = std::chrono::steady_clock;

/// Long enough to be worth the copies of K and V that a thread makes for a run.
constexpr auto kHelperTurn = std::chrono::milliseconds(5);
/// Signals are answered within 0.2 s; the check may wait for Python's lock.
constexpr auto kCheckEvery = std::chrono::milliseconds(50);

/// A run that is under way. Lives on its caller's stack; fields without a comment are guarded by
/// the pool's mutex.
struct Job {
  explicit Job(const Run& r) : run(r) {}

  const Run& run;                   ///< constant
  std::atomic<bool> failed{false};  ///< no thread is to begin another tile
  std::exception_ptr error;         ///< the first one
  int helpers = 0;
  bool exhausted = false;  ///< no tile is left to begin
  std::condition_variable helper_left;
};

class CallerTurn final : public Turn {
 public:
  explicit CallerTurn(const Job& job) : job_(job) {}
  bool is_callers() const override { return true; }
  bool has_failed() const override { return job_.failed.load(std::memory_order_relaxed); }
  bool is_over() const override {
    return has_failed() || (job_.run.check && Clock::now() - begin_ >= kCheckEvery);
  }

 private:
  const Job& job_;
  const Clock::time_point begin_ = Clock::now();
};

class HelperTurn final : public Turn {
 public:
  HelperTurn(const Job& job, const std::atomic<int>& num_jobs) : job_(job), num_jobs_(num_jobs) {}
  bool is_callers() const override { return false; }
  bool has_failed() const override { return job_.failed.load(std::memory_order_relaxed); }
  bool is_over() const override {
    return has_failed() ||
           (num_jobs_.load(std::memory_order_relaxed) > 1 && Clock::now() - begin_ >= kHelperTurn);
  }

 private:
  const Job& job_;
  const std::atomic<int>& num_jobs_;
  const Clock::time_point begin_ = Clock::now();
};

class ThreadPool {
 public:
  void run(const Run& run) {
    Job job(run);
    if (run.threads > 1) add(job);
    compute_as_caller(job);
    if (run.threads > 1) remove(job);
    if (job.error) std::rethrow_exception(job.error);
  }

 private:
  void add(Job& job) {
    const std::lock_guard lock(mutex_);
    start_threads(std::min(job.run.threads, kMaxThreads) - 1);
    jobs_.push_back(&job);
    ++num_jobs_;
    wake_.notify_all();
  }

  void start_threads(int wanted) {
    for (; num_threads_ < wanted; ++num_threads_) {
      try {
        std::thread([this] { serve(); }).detach();
      } catch (const std::system_error& error) {
        throw std::runtime_error("varlen_prefill: expected to start " + std::to_string(wanted) +
                                 " threads beside the caller's, got \"" + error.code().message() +
                                 "\" at number " + std::to_string(num_threads_ + 1) +
                                 "; set_num_threads() sets how many a plan asks for");
      }
    }
  }

  void compute_as_caller(Job& job) {
    try {
      while (!job.failed && job.run.compute(CallerTurn(job))) check(job);
    } catch (...) {
      fail(job);
    }
  }

  static void check(const Job& job) {
    if (job.run.check && !job.failed) job.run.check();
  }

  /// To be called where an exception is handled.
  void fail(Job& job) {
    const std::lock_guard lock(mutex_);
    if (!job.failed) job.error = std::current_exception();
    job.failed = true;
  }

  /// No helper joins any more; those that are there finish their tiles, checked on meanwhile.
  void remove(Job& job) {
    std::unique_lock lock(mutex_);
    jobs_.remove(&job);
    --num_jobs_;
    while (job.helpers > 0) {
      if (job.helper_left.wait_for(lock, kCheckEvery) == std::cv_status::no_timeout) continue;
      lock.unlock();
      try {
        check(job);
      } catch (...) {
        fail(job);
      }
      lock.lock();
    }
  }

  [[noreturn]] void serve() {
    for (std::unique_lock lock(mutex_);;) {
      Job* job;
      while (!(job = next_job())) wake_.wait(lock);
      ++job->helpers;
      lock.unlock();
      bool more = false;
      try {
        more = job->run.compute(HelperTurn(*job, num_jobs_));
      } catch (...) {
        fail(*job);
      }
      lock.lock();
      if (!more) job->exhausted = true;
      --job->helpers;
      job->helper_left.notify_one();  // with the lock held: the caller destroys it without
    }
  }

  /// Of the runs that a helper can join the one with fewest; of equal ones the longest unserved.
  Job* next_job() {
    auto best = jobs_.end();
    for (auto at = jobs_.begin(); at != jobs_.end(); ++at) {
      const Job& job = **at;
      const bool open =
          !job.failed && !job.exhausted && job.helpers < std::min(job.run.threads, kMaxThreads) - 1;
      if (open && (best == jobs_.end() || job.helpers < (*best)->helpers)) best = at;
    }
    if (best == jobs_.end()) return nullptr;
    jobs_.splice(jobs_.end(), jobs_, best);
    return jobs_.back();
  }

  std::mutex mutex_;
  std::condition_variable wake_;
  std::list<Job*> jobs_;
  int num_threads_ = 0;
  std::atomic<int> num_jobs_{0};
};

/// Of this process; null in a forked child until its first run.
constinit std::atomic<ThreadPool*> current{nullptr};

[[maybe_unused]] const int at_fork = pthread_atfork(nullptr, nullptr, [] { current = nullptr; });

ThreadPool& pool() {
  ThreadPool* found = current;
  if (!found) {
    auto* const made = new ThreadPool;
    if (current.compare_exchange_strong(found, made)) return *made;
    delete made;
  }
  return *found;
}

}  // namespace

void run_on_threads(const Run& run) { pool().run(run); }

}  // namespace exactile::cpu
