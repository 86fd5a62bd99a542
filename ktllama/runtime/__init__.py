"""llama.cpp itself: devices, loads, dry runs, and the proof that it did what a plan says.

Only modules of this package import ``llama_cpp``, and they do so inside functions, so that compiling rules never
loads the library.
"""
