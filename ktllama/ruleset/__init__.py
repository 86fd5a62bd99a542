"""Rule files: from YAML text to checked rules, every mistake reported with its place."""
