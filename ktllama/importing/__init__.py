"""The way back: from a llama.cpp command line to a rule file that places the same tensors."""
