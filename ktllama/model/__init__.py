"""Models: GGUF headers, module trees by architecture, and presets."""
