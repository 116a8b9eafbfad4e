"""Texts that must have a form: grammars over tokens, and where each sequence is in its own.

`engine.sampling.structured` says which form; `grammars` compiles it beside the loop, `matcher` follows a sequence and
fills its masks, which `engine.scheduler.masks` sends after the step to the rank that samples.
"""
