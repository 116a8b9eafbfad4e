"""How long tests wait for what must happen. It only ends failures: a loaded host may take ten times as long as ours."""

PATIENCE_S = 120.0
