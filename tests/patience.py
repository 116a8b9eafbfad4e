"""How long tests wait for what must happen. It only ends failures: a loaded host may take ten times as long as ours."""

PATIENCE_S = 120.0
PAUSE_S = 0.02  # between two looks at what is waited for, which needs the cores
