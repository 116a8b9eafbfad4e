"""Plain values that everything may import: configuration, errors, words. No torch."""
