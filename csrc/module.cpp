// The pybind11 module _C: importing it loads the library that registers the ops, and it says how it was built.
#include <pybind11/pybind11.h>

#include "common/isa.h"

#ifndef ARTENT_VERSION
#error "setup.py defines ARTENT_VERSION"
#endif
#ifndef ARTENT_CUDA_REASON
#error "setup.py defines ARTENT_CUDA_REASON"
#endif

PYBIND11_MODULE(_C, m) {
  m.doc() = "Native part of artent_ext: operators are reached through torch.ops.artent.";
  m.def("build_info", [] {
    pybind11::dict info;
    info["version"] = ARTENT_VERSION;
    info["cuda"] = bool(ARTENT_CUDA);
    info["cuda_reason"] = ARTENT_CUDA_REASON;
    info["compiler"] = "GCC-compatible " __VERSION__;
    info["torch_target"] = "2.10";
    info["isa"] = artent::isa_name(artent::isa());
    return info;
  });
}
