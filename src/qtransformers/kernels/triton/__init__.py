"""The GPU kernels, in Triton: torch arrays in and out, by the names that `kernels.cpu` has.

They read GGUF blocks as they lie in the file. Everything also runs in Triton's interpreter on the CPU.
"""
