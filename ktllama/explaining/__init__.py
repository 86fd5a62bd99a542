"""Why every module, tensor and KV cache is where it is: in words, as JSON, and as a picture."""
