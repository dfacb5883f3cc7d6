// Switching between stacks. ucontext does it everywhere, with two system calls each time; on x86-64 a few instructions
// do, and the tests are several times as fast.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

namespace artent::simt {

constexpr size_t kStackBytes = 128 * 1024;

#if defined(__x86_64__)

// What a function must preserve goes onto the stack it leaves and comes off the one it enters; the return is the jump.
extern "C" void artent_simt_switch(void** leave, void* enter);
asm(R"(
  .text
  .local artent_simt_switch
  .type artent_simt_switch, @function
artent_simt_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
  .size artent_simt_switch, .-artent_simt_switch
)");

class Fibre {
 public:
  // Makes the fibre begin with `function`, which must never return, on a stack of its own.
  void start(void (*function)()) {
    if (!stack_) stack_ = std::make_unique<char[]>(kStackBytes);
    auto* top = reinterpret_cast<void**>(reinterpret_cast<uintptr_t>(stack_.get() + kStackBytes) / 16 * 16);
    *--top = nullptr;  // where `function` would return to; keeps the stack aligned as a call does
    *--top = reinterpret_cast<void*>(function);
    for (int saved = 0; saved < 6; ++saved) *--top = nullptr;
    at_ = top;
  }
  void switch_to(Fibre& other) { artent_simt_switch(&at_, other.at_); }

 private:
  std::unique_ptr<char[]> stack_;
  void* at_ = nullptr;
};

#else

class Fibre {
 public:
  void start(void (*function)()) {
    if (!stack_) stack_ = std::make_unique<char[]>(kStackBytes);
    getcontext(&context_);
    context_.uc_stack.ss_sp = stack_.get();
    context_.uc_stack.ss_size = kStackBytes;
    context_.uc_link = nullptr;
    makecontext(&context_, function, 0);
  }
  void switch_to(Fibre& other) { swapcontext(&context_, &other.context_); }

 private:
  std::unique_ptr<char[]> stack_;
  ucontext_t context_{};
};

#endif

}  // namespace artent::simt
