"""From rules and modules to where every tensor and KV cache goes."""
