"""Between text and token ids, for both doors: prompts and conversations on the way in, texts on the way out.

The engine's process itself knows token ids only.
"""
