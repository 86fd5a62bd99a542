"""The planner: what rules leave open (``auto``) is decided by arithmetic and proven by llama.cpp's dry run."""
