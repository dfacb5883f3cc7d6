// One block of CUDA threads as fibres of one CPU thread, run in a seeded random order.
//
// A fibre runs until it meets a barrier or a warp operation. The scheduler lets it go on when all who have to meet
// it there are there; when nobody can go on, the launch is at fault and says who waits where.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <functional>
#include <random>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "fibre.h"

namespace artent::simt {

struct Fault : std::runtime_error {
  using std::runtime_error::runtime_error;
};

template <class... Parts>
[[noreturn]] void fail(const Parts&... parts) {
  std::ostringstream message;
  (message << ... << parts);
  throw Fault(message.str());
}

constexpr int kWarp = 32;

// Where in the source a thread waits.
struct Site {
  const char* what;
  const char* file;
  int line;
  bool operator==(const Site& other) const { return line == other.line && std::strcmp(file, other.file) == 0; }
};

struct Thread {
  enum class State { ready, at_barrier, at_warp, done };
  int id;
  State state = State::ready;
  Site site{};
  bool predicate = false;  // __syncthreads_or
  uint32_t mask = 0;       // warp operations: who takes part,
  int source = 0;          // the lane whose value is wanted,
  uint64_t value = 0;      // the value offered, and after the operation the one received
  bool orders_memory = false;
  Fibre fibre;
};

class Machine {
 public:
  int64_t block = 0;
  unsigned epoch = 0;                 // barriers passed: what happened in an earlier one happened before
  std::vector<unsigned> warp_epochs;  // the same for __syncwarp of a whole warp

  int thread() const { return current_->id; }
  int warp() const { return current_->id / kWarp; }
  int threads() const { return int(threads_.size()); }

  // Runs the kernel for every block, blocks too in random order. `before(block, thread)` is called when a thread
  // gets the processor, `reset` at the start of a block.
  void launch(int64_t blocks, int threads, uint64_t seed, const std::function<void()>& kernel,
              const std::function<void()>& reset, const std::function<void(int64_t, int)>& before) {
    if (threads % kWarp != 0) fail("a block of ", threads, " threads is not a number of whole warps");
    random_.seed(seed);
    kernel_ = &kernel;
    std::vector<int64_t> order(blocks);
    for (int64_t b = 0; b < blocks; ++b) order[b] = b;
    std::shuffle(order.begin(), order.end(), random_);
    for (int64_t b : order) {
      block = b;
      reset();
      run_block(threads, before);
    }
  }

  // A barrier of the block; true when the predicate held for any thread.
  bool barrier(bool predicate, Site site) {
    current_->predicate = predicate;
    wait(Thread::State::at_barrier, site);
    return any_;
  }

  // Offers a value to the warp and returns the one of lane `source`.
  uint64_t exchange(uint32_t mask, uint64_t value, int source, bool orders_memory, Site site) {
    const int lane = current_->id % kWarp;
    if ((mask >> lane & 1) == 0) fail(where(site), ": lane ", lane, " is not in its own mask");
    if (source < 0 || source >= kWarp || (mask >> source & 1) == 0)
      fail(where(site), ": lane ", lane, " reads lane ", source, ", which takes no part");
    current_->mask = mask;
    current_->value = value;
    current_->source = source;
    current_->orders_memory = orders_memory;
    wait(Thread::State::at_warp, site);
    return current_->value;
  }

 private:
  std::mt19937_64 random_;
  const std::function<void()>* kernel_ = nullptr;
  std::vector<Thread> threads_;
  Thread* current_ = nullptr;
  Fibre scheduler_;
  std::exception_ptr fault_;
  bool any_ = false;

  static std::string where(const Site& site) {
    return std::string(site.what) + " at " + site.file + ":" + std::to_string(site.line);
  }

  void wait(Thread::State state, Site site) {
    current_->state = state;
    current_->site = site;
    current_->fibre.switch_to(scheduler_);
  }

  // A fibre's first function.
  static void enter();

  void run_thread() {
    try {
      (*kernel_)();
    } catch (...) {
      fault_ = std::current_exception();
    }
    current_->state = Thread::State::done;
    current_->fibre.switch_to(scheduler_);
  }

  void run_block(int threads, const std::function<void(int64_t, int)>& before) {
    threads_.resize(threads);
    epoch = 0;
    warp_epochs.assign(threads / kWarp, 0);
    fault_ = nullptr;
    std::vector<Thread*> ready;
    for (int t = 0; t < threads; ++t) {
      threads_[t].id = t;
      threads_[t].state = Thread::State::ready;
      threads_[t].fibre.start(enter);
      ready.push_back(&threads_[t]);
    }
    while (!ready.empty()) {
      std::swap(ready[random_() % ready.size()], ready.back());
      current_ = ready.back();
      ready.pop_back();
      before(block, current_->id);
      scheduler_.switch_to(current_->fibre);
      if (fault_) std::rethrow_exception(fault_);
      if (current_->state == Thread::State::at_warp) release_warp(*current_, ready);
      if (ready.empty()) release_block(ready);
    }
  }

  // Lets go the lanes of an operation if all of its mask have come to it.
  void release_warp(const Thread& last, std::vector<Thread*>& ready) {
    Thread* lanes = &threads_[last.id / kWarp * kWarp];
    const uint32_t mask = last.mask;
    uint64_t offered[kWarp];
    for (int lane = 0; lane < kWarp; ++lane) {
      if ((mask >> lane & 1) == 0) continue;
      if (lanes[lane].state != Thread::State::at_warp || lanes[lane].mask != mask) return;
      if (!(lanes[lane].site == last.site))
        fail("divergent warp: ", where(last.site), " against ", where(lanes[lane].site));
      offered[lane] = lanes[lane].value;
    }
    if (last.orders_memory && mask == 0xffffffffu) ++warp_epochs[last.id / kWarp];
    for (int lane = 0; lane < kWarp; ++lane) {
      if ((mask >> lane & 1) == 0) continue;
      lanes[lane].value = offered[lanes[lane].source];
      lanes[lane].state = Thread::State::ready;
      ready.push_back(&lanes[lane]);
    }
  }

  // Nobody runs: the block is done, or it stands at one barrier, or it is stuck.
  void release_block(std::vector<Thread*>& ready) {
    const Thread& first = threads_[0];
    for (const Thread& t : threads_)
      if (t.state != first.state || (t.state != Thread::State::done && !(t.site == first.site))) stuck();
    if (first.state == Thread::State::at_warp) stuck();
    if (first.state == Thread::State::done) return;
    ++epoch;
    any_ = false;
    for (Thread& t : threads_) {
      any_ = any_ || t.predicate;
      t.state = Thread::State::ready;
      ready.push_back(&t);
    }
  }

  [[noreturn]] void stuck() const {
    std::ostringstream message;
    message << "divergent barrier in block " << block << ":";
    std::vector<std::string> places;  // each with the first thread there
    for (const Thread& t : threads_) {
      const std::string place = t.state == Thread::State::done ? "has returned" : "waits for " + where(t.site);
      if (std::find(places.begin(), places.end(), place) != places.end()) continue;
      places.push_back(place);
      message << " thread " << t.id << " " << place << ";";
    }
    throw Fault(message.str());
  }
};

inline Machine machine;

inline void Machine::enter() {
  machine.run_thread();
}

}  // namespace artent::simt
