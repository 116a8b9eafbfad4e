"""When to be in which layout: policies over measured times. They decide; `engine.scheduler` carries out."""
