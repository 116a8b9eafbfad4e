"""Does it fit: one answer for every door, before anything slow starts. Arithmetic, a few looks at the host; no torch.

`model` says what the model's sizes are, `pools` how many KV blocks there are and must be, `weights` what each rank
takes, `gpus` and `host_memory` whether there is room for it, `advice` what is allowed and yet too small to gain much.
`fit` joins them: it is what executors and doors call. What is refused is a ConfigError that says what to change.
"""
