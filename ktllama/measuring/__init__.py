"""How fast this machine is: measured with llama.cpp's own operations and small models, and kept by hardware."""
