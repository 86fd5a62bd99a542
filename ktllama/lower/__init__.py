"""From a placement to llama.cpp settings, and to the forms in which people paste them."""
