// Checked memory: shared memory with a shadow that knows who touched each word when, and registered global buffers.
#pragma once

#include <cstring>
#include <deque>

#include "machine.h"

namespace artent::simt {

// The block's dynamic shared memory, of exactly the size that the launch asked for, poisoned with NaN at the start.
//
// Two accesses of one word by two threads, one of them a write, are a race unless a barrier lies between, or both are
// of one warp and a whole-warp __syncwarp does. Shuffles order nothing.
class SharedMemory {
 public:
  void reset(int bytes) {
    bytes_ = bytes;
    memory_.resize(bytes / 16 + 1);
    std::memset(static_cast<void*>(memory_.data()), 0xff, memory_.size() * sizeof(Line));
    words_.assign(bytes / 4, Word{});
  }

  int size() const { return bytes_; }

  template <class T>
  T read(int at) {
    for (int word = at / 4; word < (at + int(sizeof(T))) / 4; ++word) check_read(words_[word], word);
    T value;
    std::memcpy(&value, base() + at, sizeof(T));
    return value;
  }

  template <class T>
  void write(int at, const T& value) {
    for (int word = at / 4; word < (at + int(sizeof(T))) / 4; ++word) check_write(words_[word], word);
    std::memcpy(base() + at, &value, sizeof(T));
  }

 private:
  struct alignas(16) Line {
    unsigned char bytes[16];
  };
  struct Access {
    int thread = -1, warp = -1;  // kMany when several
    unsigned epoch = 0, warp_epoch = 0;
  };
  struct Word {
    Access write, read;  // the last write; the reads since the last barrier
  };
  static constexpr int kMany = -2;

  int bytes_ = 0;
  std::vector<Line> memory_;
  std::vector<Word> words_;

  unsigned char* base() { return memory_[0].bytes; }

  static Access now() {
    const int warp = machine.warp();
    return {machine.thread(), warp, machine.epoch, machine.warp_epochs[warp]};
  }

  static bool unordered(const Access& past, const Access& present) {
    if (past.thread == -1 || past.thread == present.thread || past.epoch != present.epoch) return false;
    return past.warp != present.warp || past.warp_epoch == present.warp_epoch;
  }

  [[noreturn]] static void race(const char* what, const Access& past, const Access& present, int word) {
    fail("shared-memory race: ", what, " by thread ", past.thread == kMany ? "several" : std::to_string(past.thread),
         " and thread ", present.thread, " with no barrier between, block ", machine.block, ", byte ", 4 * word);
  }

  static void check_read(Word& word, int index) {
    const Access present = now();
    if (word.write.thread == -1)
      fail("thread ", present.thread, " of block ", machine.block, " reads uninitialised shared memory, byte ",
           4 * index);
    if (unordered(word.write, present)) race("written and read", word.write, present, index);
    Access& read = word.read;
    if (read.thread == -1 || read.epoch != present.epoch) {
      read = present;
      return;
    }
    if (read.thread != present.thread) read.thread = kMany;
    if (read.warp != present.warp) read.warp = kMany;
    read.warp_epoch = std::max(read.warp_epoch, present.warp_epoch);
  }

  static void check_write(Word& word, int index) {
    const Access present = now();
    if (unordered(word.write, present)) race("written twice", word.write, present, index);
    if (unordered(word.read, present)) race("read and written", word.read, present, index);
    word.write = present;
  }
};

// The buffers that a kernel was given. Every other address is out of bounds.
class GlobalMemory {
 public:
  void clear() { buffers_.clear(); }

  void add(std::string name, const void* data, size_t bytes, bool output) {
    const auto begin = reinterpret_cast<uintptr_t>(data);
    buffers_.push_back({std::move(name), begin, begin + bytes, output, std::vector<int64_t>(output ? bytes : 0, -1)});
  }

  template <class T>
  T read(const T* p) {
    const Buffer& buffer = find(p, sizeof(T), "reads");
    if (buffer.output) fail("the kernel reads its output ", buffer.name);
    return *p;
  }

  // An output element belongs to one thread of one block.
  template <class T>
  void write(T* p, T value) {
    Buffer& buffer = find(p, sizeof(T), "writes");
    if (!buffer.output) fail("the kernel writes its input ", buffer.name);
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
    bool output;
    std::vector<int64_t> writers;
  };
  std::deque<Buffer> buffers_;

  Buffer& find(const void* p, size_t bytes, const char* verb) {
    const auto address = reinterpret_cast<uintptr_t>(p);
    for (Buffer& buffer : buffers_) {
      if (address < buffer.begin || address + bytes > buffer.end) continue;
      if (address % bytes != 0) fail("misaligned access of ", buffer.name, ", byte ", address - buffer.begin);
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
