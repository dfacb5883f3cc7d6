// Checked memory: shared memory with a shadow that knows who touched each word when, and registered global buffers.
#pragma once

#include <cstring>
#include <deque>

#include "machine.h"

namespace artent::simt {

// Who touched a word of memory when.
//
// Two accesses of one word by two threads of a block, one of them a write, are a race unless a barrier lies between, or
// both are of one warp and a whole-warp __syncwarp does. Shuffles order nothing. Between blocks nothing is ordered.
class Shadow {
 public:
  // Nothing was touched; `written` false if nothing may be read either.
  void reset(size_t words, bool written) { words_.assign(words, Word{{}, {}, written}); }
  // A new launch on the same stream: what happened before happened before, and stays written.
  void start_launch() {
    for (Word& word : words_) word = Word{{}, {}, word.written};
  }

  // Tell of an access; null, or what is wrong with it.
  const char* read(size_t index) {
    Word& word = words_[index];
    const Access present = now();
    if (!word.written) return "uninitialised";
    if (word.in_flight) return "read before its copy was waited for";
    if (unordered(word.write, present)) return fault(word.write, present, "written and read");
    Access& read = word.read;
    if (read.thread == kNobody || (read.epoch != present.epoch && read.block == present.block)) {
      read = present;
      return nullptr;
    }
    if (read.block != present.block) read.block = kMany;
    if (read.thread != present.thread) read.thread = kMany;
    if (read.warp != present.warp) read.warp = kMany;
    read.warp_epoch = std::max(read.warp_epoch, present.warp_epoch);
    return nullptr;
  }
  const char* write(size_t index) {
    Word& word = words_[index];
    const Access present = now();
    if (word.in_flight) return "written while a copy to it is under way";
    if (unordered(word.write, present)) return fault(word.write, present, "written twice");
    if (unordered(word.read, present)) return fault(word.read, present, "read and written");
    word.write = present;
    word.written = true;
    return nullptr;
  }
  // An asynchronous copy writes at some time between its start and the thread's wait for it.
  const char* start_copy(size_t index) {
    const char* what = write(index);
    words_[index].in_flight = true;
    return what;
  }
  const char* end_copy(size_t index) {
    words_[index].in_flight = false;
    return write(index);
  }
  // The other thread of the last fault.
  std::string other() const { return other_ == kMany ? "several" : std::to_string(other_); }

 private:
  static constexpr int kNobody = -1, kMany = -2;
  struct Access {
    int thread = kNobody, warp = kNobody;  // kMany when several
    int64_t block = kNobody;
    unsigned epoch = 0, warp_epoch = 0;
  };
  struct Word {
    Access write, read;  // the last write; the reads since the last barrier
    bool written = false, in_flight = false;
  };
  std::vector<Word> words_;
  int other_ = kNobody;

  static Access now() {
    const int warp = machine.warp();
    return {machine.thread(), warp, machine.block, machine.epoch, machine.warp_epochs[warp]};
  }

  static bool unordered(const Access& past, const Access& present) {
    if (past.thread == kNobody) return false;
    if (past.block != present.block) return true;
    if (past.thread == present.thread || past.epoch != present.epoch) return false;
    return past.warp != present.warp || past.warp_epoch == present.warp_epoch;
  }

  const char* fault(const Access& past, const Access&, const char* what) {
    other_ = past.thread;
    return what;
  }
};

// The block's dynamic shared memory, of exactly the size that the launch asked for, poisoned with NaN at the start.
class SharedMemory {
 public:
  void reset(int bytes) {
    bytes_ = bytes;
    memory_.resize(bytes / 16 + 1);
    std::memset(static_cast<void*>(memory_.data()), 0xff, memory_.size() * sizeof(Line));
    shadow_.reset(bytes / 4, false);
  }

  int size() const { return bytes_; }

  template <class T>
  T read(int at) {
    for (int word = at / 4; word < (at + int(sizeof(T))) / 4; ++word)
      if (const char* what = shadow_.read(word)) fault(what, word);
    T value;
    std::memcpy(static_cast<void*>(&value), base() + at, sizeof(T));
    return value;
  }

  template <class T>
  void write(int at, const T& value) {
    for (int word = at / 4; word < (at + int(sizeof(T))) / 4; ++word)
      if (const char* what = shadow_.write(word)) fault(what, word);
    std::memcpy(base() + at, &value, sizeof(T));
  }

  // A chunk of 16 bytes that a copy will fill; NaN until it has.
  void start_copy(int at) {
    for (int word = at / 4; word < at / 4 + 4; ++word)
      if (const char* what = shadow_.start_copy(word)) fault(what, word);
    std::memset(base() + at, 0xff, 16);
  }
  void end_copy(int at, const unsigned char* bytes) {
    for (int word = at / 4; word < at / 4 + 4; ++word)
      if (const char* what = shadow_.end_copy(word)) fault(what, word);
    std::memcpy(base() + at, bytes, 16);
  }

 private:
  struct alignas(16) Line {
    unsigned char bytes[16];
  };

  int bytes_ = 0;
  std::vector<Line> memory_;
  Shadow shadow_;

  unsigned char* base() { return memory_[0].bytes; }

  [[noreturn]] void fault(const char* what, int word) const {
    if (std::string(what) == "uninitialised")
      fail("thread ", machine.thread(), " of block ", machine.block, " reads uninitialised shared memory, byte ",
           4 * word);
    if (std::string(what).find("copy") != std::string::npos)
      fail("shared memory is ", what, ", thread ", machine.thread(), " of block ", machine.block, ", byte ", 4 * word);
    fail("shared-memory race: ", what, " by thread ", shadow_.other(), " and thread ", machine.thread(),
         " with no barrier between, block ", machine.block, ", byte ", 4 * word);
  }
};

// What a kernel may do with a global buffer. Scratch is written and read back, by one block in one launch or by one
// launch after another, in words of four bytes, and holds nothing at first; written scratch holds what it was given.
enum class Use { input, output, scratch, written };

// The buffers that a kernel was given. Every other address is out of bounds.
class GlobalMemory {
 public:
  void clear() { buffers_.clear(); }

  void add(std::string name, const void* data, size_t bytes, Use use) {
    const auto begin = reinterpret_cast<uintptr_t>(data);
    const bool written = use == Use::written;
    buffers_.push_back({std::move(name), begin, begin + bytes, written ? Use::scratch : use, {}, {}});
    if (use == Use::output) buffers_.back().writers.assign(bytes, -1);
    if (use == Use::scratch || written) buffers_.back().shadow.reset(bytes / 4, written);
  }

  void start_launch() {
    for (Buffer& buffer : buffers_) buffer.shadow.start_launch();
  }

  template <class T>
  T read(const T* p) {
    Buffer& buffer = find(p, sizeof(T), alignof(T), "reads");
    if (buffer.use == Use::output) fail("the kernel reads its output ", buffer.name);
    if (buffer.use == Use::scratch) touch<T>(buffer, p, &Shadow::read);
    return *p;
  }

  // The source of a copy of 16 bytes or fewer.
  void copy(void* to, const void* p, size_t bytes) {
    Buffer& buffer = find(p, bytes, 16, "copies");
    if (buffer.use != Use::input) fail("the kernel copies from ", buffer.name, ", which is not an input");
    std::memcpy(to, p, bytes);
  }

  // An output element belongs to one thread of one block.
  template <class T>
  void write(T* p, T value) {
    Buffer& buffer = find(p, sizeof(T), alignof(T), "writes");
    if (buffer.use == Use::input) fail("the kernel writes its input ", buffer.name);
    if (buffer.use == Use::scratch) {
      touch<T>(buffer, p, &Shadow::write);
      *p = value;
      return;
    }
    int64_t& writer = buffer.writers[reinterpret_cast<uintptr_t>(p) - buffer.begin];
    const int64_t me = machine.block * machine.threads() + machine.thread();
    if (writer != -1 && writer != me)
      fail("two threads write ", buffer.name, ", byte ", reinterpret_cast<uintptr_t>(p) - buffer.begin);
    writer = me;
    *p = value;
  }

 private:
  struct Buffer {
    std::string name;
    uintptr_t begin, end;
    Use use;
    std::vector<int64_t> writers;  // of an output's bytes
    Shadow shadow;                 // of scratch
  };
  std::deque<Buffer> buffers_;

  template <class T>
  void touch(Buffer& buffer, const void* p, const char* (Shadow::*access)(size_t)) {
    const size_t at = reinterpret_cast<uintptr_t>(p) - buffer.begin;
    for (size_t word = at / 4; word < (at + sizeof(T) + 3) / 4; ++word) {  // less than a word counts as all of it
      const char* what = (buffer.shadow.*access)(word);
      if (what == nullptr) continue;
      if (std::string(what) == "uninitialised")
        fail("thread ", machine.thread(), " of block ", machine.block, " reads uninitialised scratch ", buffer.name,
             ", byte ", 4 * word);
      fail("race on ", buffer.name, ": ", what, " by thread ", buffer.shadow.other(), " and thread ", machine.thread(),
           " of block ", machine.block, " with no barrier between, byte ", 4 * word);
    }
  }

  Buffer& find(const void* p, size_t bytes, size_t alignment, const char* verb) {
    const auto address = reinterpret_cast<uintptr_t>(p);
    for (Buffer& buffer : buffers_) {
      if (address < buffer.begin || address + bytes > buffer.end) continue;
      if (address % alignment != 0) fail("misaligned access of ", buffer.name, ", byte ", address - buffer.begin);
      return buffer;
    }
    std::ostringstream nearest;
    for (const Buffer& buffer : buffers_)
      nearest << " " << buffer.name << (address < buffer.begin ? " − " : " + ")
              << (address < buffer.begin ? buffer.begin - address : address - buffer.begin) << ";";
    fail("thread ", machine.thread(), " of block ", machine.block, " ", verb, " out of bounds:", nearest.str());
  }
};

inline SharedMemory shared_memory;
inline GlobalMemory global_memory;

}  // namespace artent::simt
